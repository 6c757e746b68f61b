"""Which sequence an image looks like, and how often that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scripts.bundle import bundle_root, declared
from scripts.images.sequence_check import MODEL, sequence_features, sequence_probabilities
from whole_head import BRAIN, HEAD


def test_the_sequence_check_does_not_depend_on_scale_and_believes_its_own_means() -> None:
    features = sequence_features(HEAD, BRAIN.astype(np.float32), (2.0, 2.0, 5.0))
    assert features.shape == (23,) == np.shape(MODEL["mean"])
    np.testing.assert_allclose(
        sequence_features(37 * HEAD, BRAIN.astype(np.float32), (2.0, 2.0, 5.0)), features, rtol=1e-4
    )
    p = sequence_probabilities(features)
    assert set(p) == {"FLAIR", "T1", "T1Gd", "T2"} and sum(p.values()) == pytest.approx(1)


def test_the_measured_errors_of_the_checks_are_within_what_is_claimed() -> None:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "sequence_check.json"
    result = json.loads(path.read_text())
    assert result["warned that it is not FLAIR"]["threshold"] == MODEL["threshold"]
    counts: dict[str, list[int]] = {}
    for of_set in result["warned that it is not FLAIR"]["cross-validated over patients"].values():
        for sequence, text in of_set.items():
            warned, number = map(int, text.split(" of "))
            total = counts.setdefault(sequence, [0, 0])
            total[0], total[1] = total[0] + warned, total[1] + number
    rate = {sequence: a / b for sequence, (a, b) in counts.items()}
    assert rate["FLAIR"] <= 0.02 and min(rate[s] for s in ("T1", "T1Gd", "T2")) >= 0.9


@pytest.mark.parametrize(("name", "sequence"), [("flair", "FLAIR"), ("t1", "T1"), ("t1gd", "T1Gd")])
def test_only_a_sequence_that_is_not_the_models_is_warned_of(name: str, sequence: str) -> None:
    """One patient's series, through all of the model's preprocessing."""
    path = Path(bundle_root()) / "sample" / f"TCGA_FG_6692_{name}.nii.gz"
    found = declared("preprocessing", brain_cache=None)({"image": str(path)})["warnings"]
    warning = f"This does not look like FLAIR but like {sequence}. The result is probably wrong."
    assert found == ([] if sequence == "FLAIR" else [warning])
