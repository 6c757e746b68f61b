"""The bundle's models, found or fetched, loaded once, and run on one study at a time."""
