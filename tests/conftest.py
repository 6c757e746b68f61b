"""Fixtures of several files."""

from __future__ import annotations

import pytest
import torch

from scripts.bundle import declared
from tiny_run import TINY

SLOW = ("test_viewers.py",)
"""Files and tests that `make test` leaves to `make test-all`, by their measured durations."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
        if name.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


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
