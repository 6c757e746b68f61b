"""The chest model as its config declares it, with throw-away weights: on its sample, on the command line and in the app."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

import dicom
from scripts.bundle import bundle_root
from scripts.errors import cause_of
from tiny_run import summary, visible
from training_data import fill_zeros

ROOT = Path(bundle_root())
SAMPLE = ROOT / "sample" / "NIH_61_effusion.dcm"
OPTIONS = {"displayable_configs#threshold": 0.05, "displayable_configs#num_inference_steps": 2, "temperature": 1.0}


def parser(**overrides: Any) -> ConfigParser:
    config = ConfigParser()
    config.read_config([str(ROOT / "configs" / f"{name}.json") for name in ("inference", "chest")])
    config.update({"device": "cpu", **overrides})
    return config


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Networks of the declared size, as options; a part of the map is above the threshold."""
    folder = tmp_path_factory.mktemp("chest")
    torch.manual_seed(0)
    options: dict[str, Any] = {**OPTIONS, "report#manifest": None}
    for name in ("network", "classifier"):
        network = fill_zeros(parser().get_parsed_content(f"{name}_def"))
        options[f"{name}#path"] = str(folder / f"{name}.pt")
        torch.save(network.state_dict(), options[f"{name}#path"])
    return options


def run(weights: dict[str, Any], **overrides: Any) -> int:
    try:
        parser(**weights, **overrides).get_parsed_content("run")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_sample_says_what_it_is() -> None:
    """As it is published: no frame of reference, no view but where Patient Position says it, and no size."""
    sample = pydicom.dcmread(SAMPLE)
    assert sample.SOPClassUID.name == "Secondary Capture Image Storage" and sample.Modality == "DX"
    assert "FrameOfReferenceUID" not in sample and "PixelSpacing" not in sample and "PatientName" not in sample
    data = parser().get_parsed_content("preprocessing")({"image": str(SAMPLE)})
    assert data["warnings"] == [
        "The view is AP: p(diseased) told effusions no better than chance on 75 test images of it.",
        "The file doesn't say how large a pixel is: areas are in pixels, and no length is known.",
    ]
    assert tuple(data["image"].shape) == (1, *parser()["spatial_size"], 1) and data["foreground"].all()


def test_the_demonstration(weights: dict[str, Any], tmp_path: Path) -> None:
    """Counterpart, map, mask and picture on the radiograph's pixels, and both DICOM objects."""
    assert run(weights, input=str(SAMPLE), output_dir=str(tmp_path), write_dicom=True) == 0
    out = tmp_path / "NIH_61_effusion"
    objects = ["overlay.dcm", "segmentation.dcm"]
    files = ["anomaly_map.nii.gz", "counterfactual.nii.gz", "overview.png", "pred.nii.gz", "pred.png", "result.json"]
    assert visible(out) == sorted([*files, *objects])
    for name in ("anomaly_map", "counterfactual", "pred"):
        assert nib.load(out / f"{name}.nii.gz").shape == (1024, 1024, 1)
    marked = nib.load(out / "pred.nii.gz").get_fdata()[:, :, 0].T == 1
    np.testing.assert_array_equal(np.asarray(Image.open(out / "pred.png")) == 1, marked)
    found = pydicom.dcmread(out / "segmentation.dcm")
    np.testing.assert_array_equal(found.pixel_array.reshape(-1, 1024, 1024)[0] == 1, marked)
    overlay = pydicom.dcmread(out / "overlay.dcm")
    assert overlay.pixel_array.shape == (1024, 1024, 3)
    sample = pydicom.dcmread(SAMPLE, stop_before_pixels=True)
    assert found.StudyInstanceUID == overlay.StudyInstanceUID == sample.StudyInstanceUID
    record = summary(tmp_path)["NIH_61_effusion"]
    assert record["lesion_pixels"] == marked.sum() and found.SeriesDescription.startswith(f"AI {record['score']:.3f}")


def test_odd_radiographs_give_a_result_or_a_reason(
    weights: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every one in a folder is run or named with its reason, on its own grid."""
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = pydicom.dcmread(SAMPLE).pixel_array[::8, ::6]
    deep = pixels.astype(np.uint16) * 16
    cases: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "plain": (pixels, {}),
        "negative": (255 - pixels, {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CR"}),
        "windowed": (deep, {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 3000}),
        "mirrored": (pixels[:, ::-1], {"PatientOrientation": ["R", "F"]}),
        "unsaid": (pixels, {"ViewPosition": None, "BodyPartExamined": None}),
        "lateral": (pixels, {"ViewPosition": "LL"}),
        "knee": (pixels, {"BodyPartExamined": "KNEE"}),
        "mammogram": (pixels, {"Modality": "MG"}),
        "blank": (np.full_like(pixels, 7), {}),
        "tiny": (pixels[:20, :20], {}),
    }
    for name, (array, about) in cases.items():
        dicom.save(dicom.image(np.ascontiguousarray(array), PixelSpacing=[2.4, 1.8], **about), folder / f"{name}.dcm")
    Image.fromarray(pixels).save(folder / "picture.png")
    Image.fromarray(pixels).save(folder / "photo.jpg", quality=95)
    assert run(weights, input=str(folder), output_dir=str(tmp_path / "out")) == 1
    found = summary(tmp_path / "out")
    good = {name for name, record in found.items() if record["status"] == "ok"}
    assert good == {"plain", "negative", "windowed", "mirrored", "unsaid", "picture", "photo"}
    # of another modality, it is left out of a folder and refused by itself
    assert (
        "Left out: 1 of modality MG, which --allow_any_image true takes (mammogram.dcm)." in capsys.readouterr().out
        and "mammogram" not in found
    )
    assert run(weights, input=str(folder / "mammogram.dcm"), output_dir=str(tmp_path / "out")) == 1
    found = summary(tmp_path / "out")
    reasons = {"lateral": "view is LL", "knee": "body part is KNEE", "mammogram": "modality is MG"}
    for name, reason in {**reasons, "blank": "constant", "tiny": "two axes need 32"}.items():
        assert reason in found[name]["error"], found[name]["error"]
    for name in good:
        assert nib.load(tmp_path / "out" / name / "pred.nii.gz").shape == (*pixels.shape[::-1], 1)
    assert any("CHEST or THORAX was not checked" in warning for warning in found["unsaid"]["warnings"])
    for name in ("unsaid", "picture", "photo"):
        assert any("AP or PA was not checked" in warning for warning in found[name]["warnings"])
    assert found["plain"]["warnings"] == found["negative"]["warnings"] == []
    # the same radiograph, whatever way it is stored: what the networks see is turned upright and positive
    for name in ("negative", "mirrored"):
        assert found[name]["p_diseased"] == pytest.approx(found["plain"]["p_diseased"], abs=1e-3), name
    assert found["photo"]["p_diseased"] == pytest.approx(found["picture"]["p_diseased"], abs=0.01)


def test_a_baseline_refuses_a_training_image_without_a_label(weights: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "datalist.json"
    items = [{"image": "a.png", "label": 0}, {"image": "b.png"}]
    path.write_text(json.dumps({"training": items, "test": [{"image": "c.png"}]}))
    config = parser(**weights, datalist=str(path), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(RuntimeError) as caught:
        config.get_parsed_content("baselines")
    assert f"{path}, training[1]: has no 'label'; training needs" in str(cause_of(caught.value))


def test_without_weights_the_command_says_so(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(Exception) as error:
        parser(input=str(SAMPLE), models_dir=str(tmp_path / "none")).get_parsed_content("run")
    assert "there are no weights beside it; train the model first." in str(cause_of(error.value))
    assert json.loads((ROOT / "configs" / "chest.json").read_text())["models_dir#folder"] == "models/chest"


def test_the_shipped_weights_find_the_samples_effusion(tmp_path: Path) -> None:
    """On the right, which is left in the picture: the lower quarter there holds the most of the marked pixels."""
    assert run({}, input=str(SAMPLE), output_dir=str(tmp_path)) == 0
    assert summary(tmp_path)["NIH_61_effusion"]["p_diseased"] > 0.5
    out = tmp_path / "NIH_61_effusion"
    marked = nib.load(out / "pred.nii.gz").get_fdata()[:, :, 0] == 1
    quarters = [marked[:512, :512], marked[512:, :512], marked[:512, 512:], marked[512:, 512:]]
    assert np.argmax([quarter.sum() for quarter in quarters]) == 2 and 0.02 < marked.mean() < 0.2
    # the counterpart is darker there, by more than it differs elsewhere
    image = pydicom.dcmread(SAMPLE).pixel_array.T.astype(float)
    change = image - nib.load(out / "counterfactual.nii.gz").get_fdata()[:, :, 0]
    assert change[marked].mean() > 1.5 * np.abs(change[~marked]).mean()
