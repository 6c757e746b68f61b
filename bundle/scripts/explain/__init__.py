"""The method drawn on a toy whose networks are known exactly: ``python -m scripts.explain --output explain.png``."""
