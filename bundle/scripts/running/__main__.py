"""MONAI's command for one's own files, with a quicker start.

    PYTHONPATH=bundle python -m scripts.running run --config_file ...

takes the options of ``python -m monai.bundle``. That imports all of MONAI, and MONAI whatever it could make use of. What a run
on one's own files has no use for is kept from it here. A training needs MONAI's own command.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from types import ModuleType

UNUSED = (
    *("itk", "pandas", "requests", "skimage", "sklearn", "tifffile", "matplotlib.pyplot"),
    *("tensorboard", "torch.utils.tensorboard"),
    *("scipy.optimize", "scipy.signal", "scipy.sparse.csgraph"),
)
"""What MONAI imports for readers, metrics, transforms and handlers that inference.json and its models don't name."""

ZERO = "torch.distributed.optim"
"""What ignite imports for the sake of one class, which takes all that torch has for tensors on many machines."""

SPINS = 1000
"""How often a waiting thread looks for work before it sleeps: a setting of the OpenMP that torch's builds for Linux bring.

By default it looks so long that on a machine with other work those that wait keep the cores from those that compute. Timed by
hand on two cores with three other busy processes, the networks took 229 s for the sample volume by default, and 18 to 32 s so.
Alone they took 5.5 s and 5.7 s.
"""


def import_monai() -> None:
    """Import MONAI as it is without the packages in `UNUSED` and `ZERO`, which can be imported afterwards."""
    kept_away = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(kept_away))  # type: ignore[arg-type]  # None is how Python says that there is none
    if ZERO not in sys.modules:
        # ignite asks of every optimizer that it saves whether it is such a one; none is saved here
        stand_in = ModuleType(ZERO)
        stand_in.ZeroRedundancyOptimizer = type("ZeroRedundancyOptimizer", (), {})  # type: ignore[attr-defined]
        sys.modules[ZERO] = stand_in
        kept_away.append(ZERO)
    try:
        importlib.import_module("monai.bundle")
    finally:
        for name in kept_away:
            del sys.modules[name]


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # read when torch is loaded
    import_monai()
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
