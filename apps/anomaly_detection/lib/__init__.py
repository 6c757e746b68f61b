"""A MONAI Label app around the bundle: everything that a viewer, a worklist or a reader needs, and no method of its own."""
