"""What real files hold beside signal: holes, padding, spikes, offsets, other scales, and what is no MR image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.images.loading import InvalidImageError
from scripts.images.normalization import BACKGROUND
from whole_head import BRAIN, HEAD, IN_MM, SHAPE, head_with, preprocessed, write

SAME = {
    "padding of -32768": np.where(HEAD < 3, -32768, HEAD).astype(np.float32),
    "padding of 65535": np.where(HEAD < 3, 65535, HEAD).astype(np.float32),
    "NaN in air": np.where(HEAD < 3, np.nan, HEAD).astype(np.float32),
    "spike in air": head_with((3, 3, 5), 1e30),
    "trailing axes": HEAD[..., None, None],
}


WARNED = {
    "infinity in air": (head_with((3, 3, 5), np.inf), "infinite"),
    "offset of -1024": (HEAD - 1024, "Air has the value -10"),
    "offset of 500": (HEAD + 500, "Air has the value 50"),
    "z-score": ((HEAD - HEAD[BRAIN].mean()) / HEAD[BRAIN].std(), "Air has the value -"),
}


@pytest.mark.parametrize("case", [*SAME, *WARNED])
def test_holes_padding_spikes_and_offsets_don_t_change_the_networks_input(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, warning = (SAME[case], None) if case in SAME else WARNED[case]
    plain = preprocessed(write(tmp_path, HEAD), monkeypatch)
    odd = preprocessed(write(tmp_path, array), monkeypatch)
    difference = (odd["image"].as_tensor() - plain["image"].as_tensor()).abs()
    assert float((difference > 0.05).float().mean()) < 2e-3
    new = [w for w in odd["warnings"] if w not in plain["warnings"]]
    assert len(new) == (warning is not None)
    assert warning is None or warning in new[0]


def test_what_is_missing_within_the_brain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (np.nan, np.inf, 1e30):
        path = write(tmp_path, head_with((50, 60, 14), value))
        with pytest.raises(InvalidImageError, match="1 voxels within the brain") as error:
            preprocessed(path, monkeypatch)
        assert path in str(error.value)


def test_a_z_scored_brain_is_brought_back_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = preprocessed(write(tmp_path, np.where(BRAIN, HEAD, 0)), monkeypatch)
    z = np.where(BRAIN, (HEAD - HEAD[BRAIN].mean()) / HEAD[BRAIN].std(), 0).astype(np.float32)
    scored = preprocessed(write(tmp_path, z), monkeypatch)
    assert any("approximate" in w for w in scored["warnings"])
    # the darkest of this brain is 20 % of its median, which is lost: the lesion looks a little brighter
    lesion = float((plain["image"] > 0.35).sum())
    assert lesion <= float((scored["image"] > 0.35).sum()) < 1.25 * lesion


def colour(folder: Path) -> str:
    pixels = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return write(folder, pixels)


def other_format(name: str) -> Any:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(b"anything")
        return str(folder / name)

    return make


REFUSED: dict[str, tuple[Any, str]] = {
    "complex": (lambda d: write(d, HEAD.astype(np.complex64)), "complex numbers"),
    "colour": (colour, "colour picture"),
    "jpeg": (other_format("a.jpg"), "allowed are NIfTI"),
    "npy": (other_format("a.npy"), "allowed are NIfTI"),
    "analyze": (other_format("a.img"), "allowed are NIfTI"),
    "mask": (lambda d: write(d, BRAIN.astype(np.uint8)), "mask or a label map"),
    "labels": (
        lambda d: write(d, np.where(BRAIN, 1 + (IN_MM[0] > 0) + 2 * (HEAD > 150), 0).astype(np.int16)),
        "label map",
    ),
    "CT": (lambda d: write(d, np.select([BRAIN, HEAD > 10], [30 + HEAD / 10, 40], -1000).astype(np.int16)), "CT"),
    "CT from 0": (
        lambda d: write(d, np.select([BRAIN, HEAD > 10], [1054 + HEAD / 10, 1064], 24).astype(np.int16)),
        "CT",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_t_be_an_mr_image_of_a_head_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, reason = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(InvalidImageError, match=reason) as error:
        preprocessed(path, monkeypatch)
    assert path in str(error.value)
    if case in ("mask", "labels", "CT"):
        d = preprocessed(path, monkeypatch, allow_any_image=True)
        assert any("means nothing" in w for w in d["warnings"])
        assert bool((d["image"] > BACKGROUND).any())
