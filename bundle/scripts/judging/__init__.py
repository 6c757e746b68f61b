"""How well it does, on labelled data."""
