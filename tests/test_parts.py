"""How much of each part of a lesion is found: known counts, and nothing where all masks have one value."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.judging.cases import SliceCase
from scripts.judging.parts import parts_of, recalls
from test_evaluation import evaluate, write_patients


def case(subject: str, parts: np.ndarray | None, marked: np.ndarray) -> SliceCase:
    inside = np.ones((4, 4), bool)
    inside[3] = False
    truth = None if parts is None else parts > 0
    return SliceCase(
        subject, 0, np.zeros((4, 4)), inside, truth, 1, {"m": marked.astype(np.float32)}, {"m": 1.0}, parts=parts
    )


def test_each_value_has_its_share_that_is_marked() -> None:
    """Pooled over patients, of pixels in the domain: 1 is found in 3 of 6, 4 in 0 of 1."""
    parts = np.zeros((4, 4), np.uint8)
    parts[0], parts[1, :2], parts[1, 3], parts[3] = 1, 1, 4, 2
    marked = np.zeros((4, 4))
    marked[0, :3] = 1
    cases = [case("a", parts, marked), case("b", None, marked)]
    found = recalls(cases, "m", 0.5, "foreground")
    assert found == {
        "1": {"recall": 0.5, "pixels": 6, "patients": 1},
        "4": {"recall": 0.0, "pixels": 1, "patients": 1},
    }
    assert recalls(cases, "m", 0.5, "image")["2"] == {"recall": 0.0, "pixels": 4, "patients": 1}
    two = recalls([*cases, case("c", parts, np.ones((4, 4)))], "m", 0.5, "foreground")
    assert (two["1"]["recall"], two["4"]["recall"], two["1"]["patients"]) == (0.75, 0.5, 2)
    assert "interval" not in two["1"]
    three_more = [case(name, parts, np.ones((4, 4))) for name in "def"]
    assert recalls([*cases, *three_more], "m", 0.5, "foreground")["1"].keys() == two["1"].keys()
    many = recalls([*cases, *three_more, case("g", parts, np.ones((4, 4)))], "m", 0.5, "foreground")
    low, high = many["1"]["interval"]
    # five patients, of whom four have 1 and one .5
    assert 0.5 <= low < many["1"]["recall"] == 0.9 < high == 1.0
    assert recalls(cases[1:], "m", 0.5, "foreground") == {}


def test_a_patient_with_one_of_several_parts_counts() -> None:
    """Six have 2, which is found in one of them; another has 1 too. Of masks that have the same one value there is nothing."""
    both, alone = np.zeros((4, 4)), np.zeros((4, 4))
    both[0], both[1], alone[0] = 2, 1, 2
    cases = [case("a", parts_of(both), both > 0)]
    cases += [case(name, parts_of(alone), np.zeros((4, 4))) for name in "bcdef"]
    found = recalls(cases, "m", 0.5, "foreground")
    assert {value: (f["recall"], f["patients"]) for value, f in found.items()} == {"1": (1, 1), "2": (1 / 6, 6)}
    assert "interval" in found["2"] and "interval" not in found["1"]
    assert recalls(cases[1:], "m", 0.5, "foreground") == {}
    # each patient has one, but not the same
    one_each = [case("a", parts_of((both == 1) * 4), both > 0), *cases[1:]]
    found = recalls(one_each, "m", 0.5, "foreground")
    assert {value: (f["recall"], f["patients"]) for value, f in found.items()} == {"2": (0, 5), "4": (1, 1)}


def test_what_a_value_is_all_masks_decide() -> None:
    """1 is the part of a patient who has no other, where somebody has two; where none has, it is the lesion."""
    both, alone = np.zeros((4, 4)), np.zeros((4, 4))
    both[0], both[1], alone[:2] = 1, 2, 1
    cases = [case("b", parts_of(alone), np.zeros((4, 4))), case("a", parts_of(both), both > 0)]
    for order in (cases, cases[::-1]):
        assert recalls(order, "m", 0.5, "foreground") == {
            "1": {"recall": 1 / 3, "pixels": 12, "patients": 2},
            "2": {"recall": 1.0, "pixels": 4, "patients": 1},
        }
    pictures = case("c", parts_of(alone * 255), alone)
    for binary in (cases[:1], [pictures], [cases[0], pictures]):
        assert recalls(binary, "m", 0.5, "foreground") == {}


@pytest.mark.parametrize("values", [[0, 0], [0, 0.5], [0, 0.2, 0.9], list(range(40)), [0, 1, 1000], [-1, 0, 300]])
def test_other_masks_have_no_parts(values: list[float]) -> None:
    assert parts_of(np.array(values)) is None


def test_parts_are_the_values_of_a_mask() -> None:
    np.testing.assert_array_equal(parts_of(np.array([0, 1.0, 2, 4, -1])), [0, 1, 2, 4, 0])
    np.testing.assert_array_equal(parts_of(np.array([0, 4, 0.0])), [0, 4, 0])


def test_an_evaluation_says_them_of_masks_with_several_values(tmp_path: Path) -> None:
    """And the same as before of all else: the record differs in the parts alone."""
    write_patients(tmp_path)
    record = evaluate(tmp_path, tmp_path / "binary", "preview")
    assert "parts" not in record["test"] and not (tmp_path / "binary" / "test_parts.csv").exists()
    for path in tmp_path.glob("*/seg.nii.gz"):
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        lesion = np.argwhere(values)
        values[tuple(lesion[: len(lesion) // 2].T)] = 4
        nib.save(nib.Nifti1Image(values, image.affine), path)
    several = evaluate(tmp_path, tmp_path / "several", "preview")
    parts = several["test"].pop("parts")
    assert set(parts) == {"1", "4"} and all(part["patients"] == 2 for part in parts.values())
    strip = ("seconds_per_slice_in_networks",)
    assert {k: v for k, v in several.items() if k not in strip} == {k: v for k, v in record.items() if k not in strip}
    rows = (tmp_path / "several" / "test_parts.csv").read_text().splitlines()
    assert rows[0] == "part (pixels inside the foreground),recall,pixels,patients" and rows[1].startswith(
        "mask value 1,"
    )
    assert rows[1].endswith(f",{parts['1']['pixels']},2")
    json.dumps(parts)
