"""The picture of a result."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor

from perfect import perfect_result
from scripts.images.registering import SHOWN
from scripts.images.restoring import NOT_ASSESSED
from scripts.judging.on_input import cases_of
from scripts.running.overview import draw_overview
from synthetic import write_head


def test_the_overview_draws_a_mask_by_its_own_affine(tmp_path: Path) -> None:
    """The same picture whatever the order of the mask's axes, another one for another mask, and no mask of another grid."""
    d = perfect_result(write_head(tmp_path, "oblique"))
    image, affine = np.asarray(d["input_image"][0]), d["input_image"].affine.numpy()
    masks = {"plain": nib.Nifti1Image((image == 170).astype(np.uint8), affine)}
    masks["reordered"] = masks["plain"].as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    masks["foreground"] = nib.Nifti1Image((image > 0).astype(np.uint8), affine)
    pictures = {}
    for name, mask in masks.items():
        nib.save(mask, tmp_path / "mask.nii.gz")
        draw_overview(d, str(tmp_path / "mask.nii.gz"), "flair", tmp_path / f"{name}.png", num_slices=1)
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert pictures["plain"] == pictures["reordered"] != pictures["foreground"]
    nib.save(nib.Nifti1Image(masks["plain"].dataobj, np.eye(4)), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match="mask.nii.gz: lies on another grid than .*flair.nii.gz"):
        draw_overview(d, str(tmp_path / "mask.nii.gz"), "flair", tmp_path / "wrong.png")


def test_the_overview_outlines_what_was_not_assessed_in_blue(tmp_path: Path) -> None:
    """In the last panel alone, and only where there is any."""
    d = perfect_result(write_head(tmp_path, "oblique"))
    blue = []
    for some in (False, True):
        pred = d["pred"].clone()
        pred[pred == NOT_ASSESSED] = 0
        if some:
            pred[:, 30:40, 40:50] = NOT_ASSESSED
        draw_overview({**d, "pred": pred}, None, "flair", tmp_path / "picture.png")
        picture = imread(tmp_path / "picture.png")[..., :3]
        blue.append(np.argwhere(np.abs(picture - np.array([91, 155, 255]) / 255).max(axis=-1) < 0.05))
    assert len(blue[0]) == 0 and len(blue[1]) > 20
    assert blue[1][:, 1].min() > 0.6 * picture.shape[1]


def test_pictures_show_the_sequence_that_the_others_were_registered_to(tmp_path: Path) -> None:
    """Of several channels the overview and the cases of an evaluation show that one, in the image and the counterpart."""
    d = perfect_result(write_head(tmp_path, "oblique"))
    draw_overview(d, None, "study", tmp_path / "one.png")
    both = {
        **d,
        "input_image": MetaTensor(torch.cat([0 * d["input_image"], d["input_image"]]), meta=d["input_image"].meta),
    }
    both["counterfactual"] = MetaTensor(
        torch.cat([0 * d["counterfactual"], d["counterfactual"]]), meta=d["counterfactual"].meta
    )
    both["input_image"].meta[SHOWN] = 1
    draw_overview(both, None, "study", tmp_path / "second.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "second.png").read_bytes()

    def tensor(values: list[float], meta: dict[str, object]) -> MetaTensor:
        image = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 6, 6, 1).contiguous()
        return MetaTensor(image, affine=torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).double(), meta=meta)

    scale = {"intensity_scale": torch.ones(2), "intensity_offset": torch.zeros(2), "filename_or_obj": "a.nii"}
    scale["input_affine"] = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).double()
    volume = {
        "image": tensor([-0.5, 0.75], scale),
        "input_image": tensor([-0.5, 0.75], {SHOWN: 1, "filename_or_obj": "a.nii"}),
        "foreground": tensor([1.0], {}),
    }
    healthy = torch.tensor([-0.5, 0.25]).view(-1, 1, 1, 1).expand(-1, 6, 6, 1)
    [case], _ = cases_of({"image": "a.nii", "label": 1}, volume, {}, {}, healthy=healthy)
    assert np.allclose(case.image, 0.75) and np.allclose(case.counterfactual, 0.25)
