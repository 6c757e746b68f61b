"""The classes MONAI lacks for weakly supervised anomaly detection by guided diffusion.

Each module knows torch and MONAI only: no config, no viewer. `sampler` walks a grid of timesteps with a *noise model*,
any ``f(x, t) -> eps``; `guidance` wraps one noise model and is one; `inferer` turns a volume into its counterfactual;
`student` says what a student learns from many of them; `postprocessing` makes the map of both.
"""

from __future__ import annotations

HEALTHY, DISEASED = 0, 1
"""The image-level classes: labels, classifier outputs and `target_class` all use these two numbers."""
