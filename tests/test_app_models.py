"""Several models of one bundle in the app: each with its own tasks, weights, options and images."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from lib.models.declaration import FULL, PREVIEW, Declaration
from lib.models.finding import find_models
from main import AnomalyDetection
from small_bundle import write_small_bundle
from synthetic import write_head
from test_second_model import OVERLAY, SHAPE, write_pictures

OPTIONS = {"noise_level": 400, "guidance_scale": 1.0, "num_inference_steps": 2, "threshold": 0.2}


def write_two_models(folder: Path) -> Path:
    """The small bundle and beside its model a second one, of T2, that has no student and twice the last layer."""
    bundle = write_small_bundle(folder)
    second: dict[str, Any] = {
        "model": "head_t2",
        "modalities": ["MR", "CT"],
        "models_dir": {"_target_": "scripts.bundle.models_dir", "root": "@bundle_root", "folder": "models/head_t2"},
        "sequences": ["T2"],
        "displayable_configs": OPTIONS,
        "student": None,
    }
    (bundle / "configs" / "head_t2.json").write_text(json.dumps(second))
    models = bundle / "models"
    (models / "head_t2").mkdir()
    shutil.copy(models / "classifier.pt", models / "head_t2")
    weights = torch.load(models / "model.pt", weights_only=True)
    weights["out.2.conv.weight"] = 2 * weights["out.2.conv.weight"]
    torch.save(weights, models / "head_t2" / "model.pt")
    return bundle


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnomalyDetection]:
    folder = tmp_path_factory.mktemp("models")
    studies = folder / "studies"
    studies.mkdir()
    for name in ("a_flair", "a_t2", "a_t1", "b"):
        write_head(studies, "plain", name)
        (studies / f"{name}_brain.nii.gz").unlink()
    (folder / "app").mkdir()
    conf = {"bundle": str(write_two_models(folder)), "device": "cpu"}
    yield AnomalyDetection(str(folder / "app"), str(studies), conf)


def test_an_overlay_that_names_a_model_is_one(tmp_path: Path) -> None:
    first, second = find_models(write_two_models(tmp_path), "cpu")
    assert [m.declared.name for m in (first, second)] == ["brain_flair", "head_t2"]
    assert [m.declared.channels for m in (first, second)] == [["FLAIR"], ["T2"]]
    assert (first.declared.modes, second.declared.modes) == ([FULL, PREVIEW], [FULL])
    assert first.declared.options()["threshold"] == 0.05 and second.declared.options() == OPTIONS
    for model in (first, second):
        model.load()
    one, two = (m.networks[FULL]["network"].out[2].conv.weight for m in (first, second))
    torch.testing.assert_close(two, 2 * one)


def test_all_files_are_known_whose_change_loads_networks_again() -> None:
    """The one that finds the brain lies beside the folder of the model that uses it too."""
    models = Path(__file__).resolve().parent.parent / "bundle" / "models"
    files = {
        "brain_flair": ["brain.pt", "classifier.pt", "model.pt", "student.pt"],
        "brain_brats": ["brain.pt", "brats/classifier.pt", "brats/model.pt", "brats/student.pt"],
        "chest_effusion": ["chest/classifier.pt", "chest/lungs.pt", "chest/model.pt"],
    }
    for model in find_models(models.parent, "cpu"):
        assert model.declared.weights_files == [models / name for name in files[model.declared.name]]


def test_weights_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    """Each result is computed and sent to the DICOM server again that is of other weights."""
    bundle = write_small_bundle(tmp_path)
    (model,) = find_models(bundle, "cpu")
    model.load()
    before, files = model.networks.weights, sorted((bundle / "models").glob("*.pt"))
    assert files and json.loads(json.dumps(before)) == before
    for path in files:  # unpacked again
        os.utime(path)
    assert model.networks.load() and model.networks.weights == before
    (again,) = find_models(bundle, "cpu")
    again.load()
    assert again.networks.weights == before
    seen = [before]
    for path in files:
        state = torch.load(path, weights_only=True)
        torch.save({key: value + 1 for key, value in state.items()}, path)
        model.load()
        seen.append(model.networks.weights)
    manifest = bundle / "models" / "weights.json"
    content = json.loads(manifest.read_text()) if manifest.is_file() else {}
    manifest.write_text(json.dumps({**content, "temperature": 2.0}))
    model.load()
    seen.append(model.networks.weights)
    assert all(one != other for n, one in enumerate(seen) for other in seen[:n])


def test_every_model_has_its_tasks_and_the_first_ones_names_stand_alone(app: AnomalyDetection) -> None:
    tasks = app.info()["models"]
    first, second = (
        ["lesion_mask", "anomaly_heat_map", "lesion_preview"],
        ["head_t2_lesion_mask", "head_t2_anomaly_heat_map"],
    )
    assert list(tasks) == [*first, *second]
    assert tasks["head_t2_lesion_mask"]["config"] == OPTIONS
    assert "Takes T2." in tasks["head_t2_lesion_mask"]["description"]
    assert "Takes FLAIR." in tasks["lesion_mask"]["description"]


def test_the_worklist_holds_what_one_of_the_models_takes(app: AnomalyDetection) -> None:
    assert sorted(app.datastore().list_images()) == ["a_flair", "a_t2", "b"]


def test_each_model_runs_on_its_own_images(app: AnomalyDetection) -> None:
    maps = []
    for task, image, other in (("lesion_mask", "a_flair", "a_t2"), ("head_t2_lesion_mask", "a_t2", "a_flair")):
        params = app.infer({"model": task, "image": image, "save_label": True})["params"]
        assert params["warnings"] == [] or all("named" not in w for w in params["warnings"])
        uri = app.datastore().get_label_uri(image, "anomaly_map")
        maps.append(nib.load(uri).get_fdata())
        with pytest.raises(MONAILabelException, match="is named as") as refusal:
            app.infer({"model": task, "image": other})
        assert refusal.value.error == MONAILabelError.INVALID_INPUT
    assert abs(maps[0] - maps[1]).max() > 0.01  # one image, two models


def test_a_second_model_of_the_same_images_replaces_nothing_of_the_first(tmp_path: Path) -> None:
    """Its mask has its own name; map, counterpart and score stay those of the first, whichever ran last."""
    bundle = write_two_models(tmp_path)
    overlay = bundle / "configs" / "head_t2.json"
    overlay.write_text(json.dumps({**json.loads(overlay.read_text()), "sequences": ["FLAIR"]}))
    studies = tmp_path / "studies"
    studies.mkdir()
    for name in ("a_flair", "b"):
        write_head(studies, "plain", name)
        (studies / f"{name}_brain.nii.gz").unlink()
    app = AnomalyDetection(str(tmp_path), str(studies), {"bundle": str(bundle), "device": "cpu"})
    tags = ("original", "anomaly_map", "counterfactual")

    def kept() -> list[Any]:
        files = [Path(app.datastore().get_label_uri("a_flair", tag)).read_bytes() for tag in tags]
        return [*files, app.datastore().get_image_info("a_flair")["anomaly_score"]]

    assert app.infer({"model": "lesion_mask", "image": "a_flair", "save_label": True})["tag"] == "original"
    before = kept()
    second = {"model": "head_t2_lesion_mask", "image": "a_flair", "save_label": True}
    assert app.infer(dict(second))["tag"] == "head_t2_lesion_mask" and kept() == before
    assert app.infer({**second, "label_tag": "mine"})["tag"] == "mine" and kept() == before
    assert app.infer(
        {"model": "lesion_mask", "image": "a_flair", "save_label": True, "label_tag": "mine", "threshold": 0.1}
    )
    assert kept() == before
    request = {"model": "head_t2_lesion_mask", "images": "all", "device": "cpu"}
    assert {i: row["status"] for i, row in app.batch_infer(request).items()} == {"a_flair": "skipped", "b": "ok"}
    # nor where a name says nothing, or a model takes whatever sequence
    assert set(app.datastore().get_image_info("b")) & {"anomaly_score"} == set()
    overlay.write_text(json.dumps({**json.loads(overlay.read_text()), "sequences": []}))
    app = AnomalyDetection(str(tmp_path), str(studies), {"bundle": str(bundle), "device": "cpu"})
    assert app.infer(dict(second))["tag"] == "head_t2_lesion_mask" and kept() == before


def test_an_image_of_another_models_modality_is_refused(app: AnomalyDetection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(app.datastore()), "modality", lambda self, image_id: "CT")
    with pytest.raises(MONAILabelException, match="b is CT, the model takes MR"):
        app.infer({"model": "lesion_mask", "image": "b"})
    assert app.infer({"model": "head_t2_lesion_mask", "image": "b"})["params"]["options"] == OPTIONS


def test_a_model_of_pictures_with_two_channels_shows_up(tmp_path: Path) -> None:
    """The toy model of another organ: its overlay is all that the app needs."""
    bundle = write_small_bundle(tmp_path)
    (bundle / "configs" / "knee.json").write_text(json.dumps(OVERLAY))
    (bundle / "models" / "knee").mkdir()
    assert [m.declared.name for m in find_models(bundle, "cpu")] == ["brain_flair"]  # it has no weights yet
    declared = Declaration(bundle, "cpu", "knee.json")
    for name, definition in (("model", "network_def"), ("classifier", "classifier_def"), ("student", "student_def")):
        torch.save(declared.parsed(definition).state_dict(), bundle / "models" / "knee" / f"{name}.pt")
    studies = tmp_path / "studies"
    studies.mkdir()
    write_pictures(studies, 2)
    for path in studies.glob("*_spot.png"):
        path.unlink()
    for path in studies.glob("*.png"):
        path.rename(path.with_stem(f"{path.stem}_energy"))
    (tmp_path / "app").mkdir()
    app = AnomalyDetection(str(tmp_path / "app"), str(studies), {"bundle": str(bundle), "device": "cpu"})
    task = app.info()["models"]["knee_lesion_mask"]
    chosen = {id_.partition("#")[2]: value for id_, value in OVERLAY.items() if id_.startswith("displayable_configs#")}
    assert chosen.items() <= task["config"].items() and "Takes high energy, low energy." in task["description"]
    assert "knee_lesion_preview" in app.info()["models"]
    assert app.datastore().list_images() == ["0_high_energy", "1_high_energy"]
    result = app.infer({"model": "knee_lesion_mask", "image": "1_high_energy", "save_label": True})
    assert result["params"]["lesion_pixels"] >= 0
    for tag, shape in (("original", (*SHAPE, 1)), ("anomaly_map", (*SHAPE, 1)), ("counterfactual", (*SHAPE, 1, 2))):
        assert nib.load(app.datastore().get_label_uri("1_high_energy", tag)).shape == shape
    with pytest.raises(MONAILabelException, match="the model takes FLAIR"):
        app.infer({"model": "lesion_mask", "image": "1_high_energy"})
    assert app.next_sample({"strategy": "most_anomalous_first"})["id"] == "1_high_energy"

    # beside volumes, each model's work is what it takes
    write_head(studies, "plain", "head_flair")
    (studies / "head_flair_brain.nii.gz").unlink()
    for kind, first, unread in (("DX_CR", "1_high_energy", 2), ("MR", "head_flair", 1)):
        sample = app.next_sample({"strategy": f"most_anomalous_{kind}_first"})
        assert (sample["id"], sample["unread"]) == (first, unread)
    assert set(app.batch_infer({"model": "lesion_mask", "images": "all", "device": "cpu"})) == {"head_flair"}
    found = app.batch_infer({"model": "knee_lesion_mask", "images": "unlabeled", "device": "cpu"})
    assert {i: row["status"] for i, row in found.items()} == {"0_high_energy": "ok", "1_high_energy": "skipped"}


def test_a_student_without_a_threshold_of_its_own_gives_no_preview(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = write_small_bundle(tmp_path)
    path = bundle / "configs" / "preview.json"
    chosen = {"_target_": "scripts.weights.calibrated", "manifest": "@manifest", "name": "preview_threshold"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"displayable_configs": {"threshold": chosen}}))
    assert find_models(bundle, "cpu")[0].declared.modes == [FULL]
    assert "brain_flair has no preview" in caplog.text and "preview_threshold" in caplog.text
    calibration = {"calibration": {"values": {"preview_threshold": 0.3}}}
    (bundle / "models" / "weights.json").write_text(json.dumps(calibration))
    assert find_models(bundle, "cpu")[0].declared.options(PREVIEW) == {"threshold": 0.3}


def test_a_model_that_is_broken_leaves_the_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No JSON, no channels, no threshold, no weights, weights of others: each is named in the log with its reason."""
    caplog.set_level("INFO")
    bundle = write_two_models(tmp_path)
    configs = bundle / "configs"
    (configs / "broken.json").write_text('{"model": ')
    (configs / "unlike.json").write_text(json.dumps({"model": "unlike", "models_dir": "@nothing"}))
    chosen = {"_target_": "scripts.weights.calibrated", "manifest": "@manifest", "name": "threshold"}
    for name, options in (("uncalibrated", {"threshold": chosen}), ("untrained", OPTIONS), ("misfit", OPTIONS)):
        folder = {"_target_": "scripts.bundle.models_dir", "root": "@bundle_root", "folder": f"models/{name}"}
        overlay = {"model": name, "models_dir": folder, "displayable_configs": options}
        (configs / f"{name}.json").write_text(json.dumps(overlay))
        if name != "untrained":
            (bundle / "models" / name).mkdir()
            for file, source in (("model", "classifier"), ("classifier", "classifier"), ("student", "student")):
                shutil.copy(bundle / "models" / f"{source}.pt", bundle / "models" / name / f"{file}.pt")
    (tmp_path / "studies").mkdir()
    (tmp_path / "app").mkdir()
    app = AnomalyDetection(str(tmp_path / "app"), str(tmp_path / "studies"), {"bundle": str(bundle), "device": "cpu"})
    assert [m.declared.name for m in app.models] == ["brain_flair", "head_t2", "misfit"]
    app.load_models()
    assert [m.declared.name for m in app.models] == ["brain_flair", "head_t2"]
    assert not any(name.startswith("misfit") for name in app.info()["models"])
    assert "head_t2_lesion_mask" in app._infers
    reasons = (
        "broken.json is left out: ",
        "unlike.json is left out: ",
        "holds no threshold",
        "models/untrained/model.pt: no weights there",
        "misfit is left out: ",
    )
    assert all(reason in caplog.text for reason in reasons) and "its weights don't fit" in caplog.text
