"""From the source tree to one zip a model, each a MONAI bundle that needs nothing beside it: ``python -m release``.

- `models`: the models of the source tree, and which of them can be released.
- `merging`: a model's configs, the base and its overlay merged.
- `describing`: its metadata and its card.
- `archive`: the zip, the same bytes from the same files.
- `hub`: a zip as a repository on the Hugging Face Hub.
- `verify`: what a zip must stand, as the zoo, MONAI's tools and MONAI Label run it.

Runs with ``bundle`` on the path. No part of a bundle: none of this is in a zip.
"""
