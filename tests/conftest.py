"""Fixtures of several files."""

from __future__ import annotations

import pytest
import torch

from scripts.bundle import declared
from tiny_run import TINY


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of random weights of the networks that `tiny_run.run` runs, as the options that name them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    paths = {}
    for name in ("network", "classifier", "student"):
        paths[f"{name}#path"] = str(folder / f"{name}.pt")
        torch.save(declared(f"{name}_def", **TINY).state_dict(), paths[f"{name}#path"])
    return paths
