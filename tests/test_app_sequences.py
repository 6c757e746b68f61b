"""A model of several sequences in the app: the others of the study are found and registered to the one that is shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from main import AnomalyDetection
from scripts.bundle import bundle_root
from small_bundle import write_small_bundle
from study import GRIDS, write_study
from synthetic import write_head


def write_bundle_of_two(folder: Path) -> Path:
    """The small bundle for T1 and FLAIR, which it registers as the model of four sequences does."""
    bundle = write_small_bundle(folder, ("T1", "FLAIR"))
    overlay = json.loads(Path(bundle_root(), "configs", "brats.json").read_text())
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    transforms = config["preprocessing"]["transforms"]
    transforms[0]["own_grids"] = True
    for place in (1, 6):
        transforms[place] = overlay[f"preprocessing#transforms#{place}"]
    config["reference"] = "FLAIR"
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))
    return bundle


def test_several_sequences_are_found_and_brought_to_one_grid(tmp_path: Path) -> None:
    """The viewer shows the FLAIR, whose grid the results get; the moved T1 of its study is registered to it."""
    bundle = write_bundle_of_two(tmp_path)
    folder = tmp_path / "studies"
    folder.mkdir()
    write_study(folder, ("T1", "FLAIR"), "p1")
    write_head(folder, "plain", "q_flair")
    shutil.copy(folder / "p1_T1.nii.gz", folder / "p1_T1_sag.nii.gz")
    for brain in folder.glob("*brain*"):
        brain.unlink()
    (tmp_path / "app").mkdir()
    app = AnomalyDetection(str(tmp_path / "app"), str(folder), {"bundle": str(bundle), "device": "cpu"})
    studies = app.datastore()
    assert sorted(studies.list_images()) == ["p1_FLAIR", "q_flair"]
    assert studies.siblings("p1_FLAIR", ["T1", "FLAIR"]) == ["p1_T1", "p1_FLAIR"]
    result = app.infer({"model": "lesion_mask", "image": "p1_FLAIR", "save_label": True})
    warnings = result["params"]["warnings"]
    assert "Of 2 T1 images of this study, p1_T1 was taken and not p1_T1_sag." in warnings
    for tag, shape in (("original", GRIDS["FLAIR"].shape), ("counterfactual", (*GRIDS["FLAIR"].shape, 2))):
        stored = nib.load(studies.get_label_uri("p1_FLAIR", tag))
        assert stored.shape == shape
        np.testing.assert_allclose(stored.affine, nib.load(folder / "p1_FLAIR.nii.gz").affine)
    for image, error in {
        "q_flair": "q_flair: the model takes T1, FLAIR; T1 is missing in this study.",
        "p1_T1": "p1_T1 is T1, and the results of this model lie on the grid of FLAIR: choose p1_FLAIR of this study.",
    }.items():
        with pytest.raises(MONAILabelException) as refusal:
            app.infer({"model": "lesion_mask", "image": image})
        assert refusal.value.error == MONAILabelError.INVALID_INPUT and error in refusal.value.msg
