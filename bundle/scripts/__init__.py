"""What MONAI lacks for weakly supervised anomaly detection by guided diffusion. A room may import those above it.

- ``method``: from a slice to its healthy counterpart and what changed. `method.sampler` walks a grid of timesteps with a *noise
  model*, any ``f(x, t) -> eps``; `method.guidance` wraps one and is one; `method.inferer` and `method.maps` use both.
- ``explain``: the method drawn on a toy that needs no training.
- ``images``: from files of every format to what the networks take, and back to the input's grid.
- ``dicom``: series of images, and masks and maps as DICOM objects.
- ``learning``: datalists, training, and what a student learns from many maps.
- ``prepare``: from data sets as they are published to datalists. A new data set is a module here.
- ``judging``: how well it does on labelled data.
- ``running``: one's own files: inputs, results, report.

Beside the rooms lie what all of them share. Nothing here knows MONAI Label.
"""

from __future__ import annotations

HEALTHY, DISEASED = 0, 1
"""The image-level classes: labels, classifier outputs and `target_class` all use these two numbers."""
