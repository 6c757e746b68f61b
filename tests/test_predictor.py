"""`Predictor`: the same numbers from Python as from the command line, of a path and of an array."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.bundle import bundle_root
from scripts.images.loading import InvalidImageError
from scripts.running.predictor import Predictor
from scripts.weights import MANIFEST
from synthetic import GRIDS, write_head

NON_ZERO = {"foreground": {"_target_": "scripts.images.foregrounds.NonZerod", "keys": "image"}}


@pytest.fixture(scope="module")
def predict() -> Predictor:
    return Predictor("preview", **NON_ZERO, device="cpu")


@pytest.mark.parametrize("grid", GRIDS)
def test_a_path_and_an_array_give_the_same_on_the_images_grid(grid: str, predict: Predictor, tmp_path: Path) -> None:
    item = write_head(tmp_path, grid)
    source = nib.load(item["image"])
    of_path = predict(item["image"])
    of_array = predict(np.asarray(source.dataobj), source.affine)
    assert of_path.mask.shape == of_path.anomaly_map.shape == source.shape and of_path.mask.dtype == np.uint8
    np.testing.assert_array_equal(of_path.affine, source.affine)
    np.testing.assert_array_equal(of_path.mask, of_array.mask)
    np.testing.assert_array_equal(of_path.anomaly_map, of_array.anomaly_map)
    assert (of_path.score, of_path.p_diseased) == (of_array.score, of_array.p_diseased)
    assert of_path.counterfactual is not None and of_path.counterfactual.shape == (1, *source.shape)
    voxel_ml = abs(np.linalg.det(source.affine[:3, :3])) / 1000
    assert of_path.lesion_ml == pytest.approx((of_path.mask == 1).sum() * voxel_ml)
    assert of_path.not_assessed_ml == pytest.approx((of_path.mask == 2).sum() * voxel_ml)
    assert of_path.p_diseased == max((s["p_diseased"] for s in of_path.slices if s["assessed"]), default=None)


def test_the_full_model_gives_a_counterpart(tmp_path: Path) -> None:
    options = {"displayable_configs#num_inference_steps": 2, "device": "cpu", **NON_ZERO}
    result = Predictor(**options)(write_head(tmp_path)["image"])
    assert result.counterfactual is not None and result.counterfactual.shape == (1, *result.mask.shape)


def test_numbers_that_were_chosen_for_other_networks_are_said_of_each_image(tmp_path: Path) -> None:
    content = json.loads((Path(bundle_root()) / "models" / MANIFEST).read_text())
    content["calibration"]["classifier"] = "0"
    manifest = tmp_path / MANIFEST
    manifest.write_text(json.dumps(content))
    options = {"manifest": str(manifest), "device": "cpu", **NON_ZERO}
    chosen = "The threshold was chosen for other networks than those in use."
    warm = "The temperature was chosen for another classifier than the one in use."
    image = write_head(tmp_path)["image"]
    predict = Predictor("preview", **options)
    assert [predict(image).warnings[:2] for _ in range(2)] == [[chosen, warm]] * 2
    # who gives a threshold isn't told that another would not fit
    assert chosen not in Predictor("preview", **{**options, "displayable_configs#threshold": 0.4})(image).warnings


def test_what_cannot_be_used_is_refused(predict: Predictor, tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="none.nii: no such file"):
        predict(tmp_path / "none.nii")
    with pytest.raises(TypeError, match="an array needs its affine"):
        predict(np.zeros((40, 40, 3)))
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        Predictor("nothing")
    for options, said in (
        ({"threshold": 0.3}, "there is no such option; did you mean --displayable_configs#threshold"),
        ({"displayable_configs#threshold": 9}, "threshold must be above 0 and at most 2, got 9"),
        ({"allow_any_image": "maybe"}, "must be true or false"),
    ):
        with pytest.raises(ValueError, match=said):
            Predictor("preview", **NON_ZERO, device="cpu", **options)
    with pytest.raises(TypeError, match="got Nifti1Image"):
        predict(nib.Nifti1Image(np.zeros((40, 40, 3)), np.eye(4)))  # type: ignore[arg-type]
    with pytest.raises(InvalidImageError, match="^the array: is constant"):
        predict(np.zeros((40, 40, 3)), np.eye(4))


SINGULAR, PERSPECTIVE = np.diag([1.0, 0, 1, 1]), np.eye(4)
PERSPECTIVE[3, 2] = 1


@pytest.mark.parametrize(
    ("array", "affine", "said"),
    [
        (np.zeros(40 * 40 * 40), np.eye(4), r"the array has the shape \(64000,\)"),
        (np.zeros((40, 40)), np.eye(4), r"of a picture \(X, Y, 1\)"),
        (np.zeros((40, 40, 3), complex), np.eye(4), "holds complex128; allowed are real numbers"),
        (np.zeros((40, 40, 3)), SINGULAR, "the affine is singular"),
        (np.zeros((40, 40, 3)), np.eye(4) * np.nan, "the affine must be 4 x 4 numbers"),
        (np.zeros((40, 40, 3)), np.eye(3), "the affine must be 4 x 4 numbers"),
        (np.zeros((40, 40, 3)), PERSPECTIVE, "the last row 0 0 0 1"),
        (np.zeros((40, 40, 3)), "RAS", "the affine must be 4 x 4 numbers, got 'RAS'"),
    ],
)
def test_an_array_or_affine_that_says_too_little_is_refused(
    array: np.ndarray, affine: Any, said: str, predict: Predictor
) -> None:
    with pytest.raises(InvalidImageError, match=said):
        predict(array, affine)
