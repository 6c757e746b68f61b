"""Running on one's own files."""
