"""Fixtures of several files."""

from __future__ import annotations

import os

# before torch is loaded, here and in what the tests start: on a machine with other work, threads that wait take the cores from
# those that compute, and minutes become an hour
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytest
import torch

from scripts.bundle import declared
from tiny_run import TINY

SLOW = (
    "test_app.py::test_fine_tuning_over_http",
    "test_app.py::test_triage_and_scoring",
    "test_bundle.py::test_the_",  # all that run the sample
    "test_cohorts.py",
    "test_command.py::test_ctrl_c_leaves_whole_results_and_a_summary",
    "test_command.py::test_ctrl_c_while_volumes_are_made",
    "test_compare.py",
    "test_deployment.py::test_the_service_starts",
    "test_evaluation.py::test_an_evaluation_goes_on_after_a_bad_volume_and_where_it_was_stopped",
    "test_explain.py::test_make_explain",
    "test_exporting.py",
    "test_federated.py",
    "test_monai_tools.py",
    "test_network.py",
    "test_reach.py::test_the_command_lists_and_refuses",
    "test_readme.py::test_commands_run_as_written",
    "test_registering.py::test_channels_come_to_the_references_grid",
    "test_registering.py::test_a_failed_registration_is_refused",
    "test_release.py::test_the_checks_find_a_spoiled_zip",
    "test_resuming.py",
    "test_signing.py",
    "test_studies.py::test_a_batch_again_runs_only_what_changed",
    "test_training.py",
    "test_training_ranks.py",
    "test_tutorial.py::test_it_runs",
    "test_viewers.py",
)
"""What `make test` leaves to `make test-all`: files that take over half a minute and tests that take about ten seconds or more,
alone on two cores. A name stands for all that begin so."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, so that ``-m slow`` and ``-m "not slow"`` choose."""
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
