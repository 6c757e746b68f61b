"""From a data set as it is published to a datalist, one layout a module; ``python -m scripts.prepare --help``."""
