"""Fine-tuning from the studies: slices are labelled and patients split as said, weights change for the better or not at all."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
import torch
from ignite.engine import Engine
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from PIL import Image

from lib.fine_tuning.fine_tune import FineTune
from lib.fine_tuning.labelled_studies import labelled_studies
from lib.fine_tuning.patients import split_patients
from lib.fine_tuning.slice_classes import tag_labels
from lib.fine_tuning.training_log import TrainingLog
from lib.studies.folder_studies import FolderStudies
from scripts.bundle import bundle_root, declared
from scripts.images.brain import ExtractBraind
from scripts.images.grids import image_grid
from scripts.images.mask_labels import mask_labels
from scripts.learning.datasets import SliceDataset
from synthetic import GRIDS, head, write_head
from tiny_run import TINY
from training_data import OVERLAYS

SLICE_AXIS = {"plain": 2, "flipped": 2, "oblique": 2, "sagittal": 0}
LABELS = [0, 1, -1, 1, 0, 1]


@pytest.fixture(autouse=True)
def brains_are_what_is_not_air(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)


def marks(grid: str, labels: Sequence[int]) -> np.ndarray:
    """A mask with a few voxels of the lesion in slices labelled 1, and of what was not assessed in those of 1 and -1."""
    mask = np.zeros(GRIDS[grid][0], np.uint8)
    for number, label in enumerate(labels):
        inside = np.moveaxis(mask, SLICE_AXIS[grid], 0)[number]
        inside[40:44, 38:42] = 2 if label else 0
        if label == 1:
            inside[42:44, 38:42] = 1
    return mask


def write_nrrd(path: Path, mask: np.ndarray, affine: np.ndarray) -> None:
    """As 3D Slicer does: axes along left, posterior, superior."""
    to_lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    header = {"space": "left-posterior-superior", "space directions": to_lps[:, :3].T, "space origin": to_lps[:, 3]}
    nrrd.write(str(path), mask, {**header, "kinds": ["domain"] * 3})


def write_mask(path: Path, mask: np.ndarray, affine: np.ndarray) -> Path:
    if path.name.endswith(".nrrd"):
        write_nrrd(path, mask, affine)
    else:
        nib.save(nib.Nifti1Image(mask, affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd"])
@pytest.mark.parametrize("grid", list(SLICE_AXIS))
def test_each_slice_has_the_label_of_its_marks(tmp_path: Path, grid: str, suffix: str) -> None:
    labels = LABELS + [0] * (GRIDS[grid][0][SLICE_AXIS[grid]] - len(LABELS))
    image = write_head(tmp_path, grid)["image"]
    mask = write_mask(tmp_path / f"mask{suffix}", marks(grid, labels), GRIDS[grid][1])
    assert mask_labels(str(mask), image_grid(image)) == labels


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("grid", ["plain", "flipped", "sagittal"])
def test_masks_that_itk_writes(tmp_path: Path, grid: str, suffix: str) -> None:
    image = write_head(tmp_path, grid)["image"]
    mask = SimpleITK.GetImageFromArray(marks(grid, LABELS).T)
    mask.CopyInformation(SimpleITK.ReadImage(image))
    SimpleITK.WriteImage(mask, str(tmp_path / f"mask{suffix}"))
    assert mask_labels(str(tmp_path / f"mask{suffix}"), image_grid(image)) == LABELS


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("grid", ["flipped", "sagittal"])
def test_an_image_of_itk_has_the_labels_of_its_mask(tmp_path: Path, grid: str, suffix: str) -> None:
    image = tmp_path / f"image{suffix}"
    SimpleITK.WriteImage(SimpleITK.ReadImage(write_head(tmp_path, grid)["image"]), str(image))
    mask = write_mask(tmp_path / "mask.nii.gz", marks(grid, LABELS), GRIDS[grid][1])
    assert mask_labels(str(mask), image_grid(str(image))) == LABELS


def test_an_image_in_metres_has_the_labels_of_its_mask(tmp_path: Path) -> None:
    image = nib.load(write_head(tmp_path, "flipped")["image"])
    in_metres = nib.Nifti1Image(image.get_fdata(), np.diag([0.001, 0.001, 0.001, 1]) @ image.affine)
    in_metres.header.set_xyzt_units("meter")
    nib.save(in_metres, tmp_path / "metres.nii.gz")
    mask = write_mask(tmp_path / "mask.nii.gz", marks("flipped", LABELS), GRIDS["flipped"][1])
    assert mask_labels(str(mask), image_grid(str(tmp_path / "metres.nii.gz"))) == LABELS


def test_a_mask_may_hold_the_same_voxels_in_another_order(tmp_path: Path) -> None:
    image = write_head(tmp_path, "oblique")["image"]
    labels = [1, 0, 0, -1, 0, 0, 0]
    stored = nib.Nifti1Image(marks("oblique", labels), GRIDS["oblique"][1])
    other = stored.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    assert other.shape == (7, 84, 92)
    nib.save(other, tmp_path / "mask.nii.gz")
    assert mask_labels(str(tmp_path / "mask.nii.gz"), image_grid(image)) == labels


@pytest.mark.parametrize("grid", list(SLICE_AXIS))
def test_the_dataset_takes_the_labels_for_the_slices_that_hold_the_lesion(tmp_path: Path, grid: str) -> None:
    shape, affine = GRIDS[grid]
    image, brain = head(shape)
    image[image == 170] = 100
    slices = np.moveaxis(image, SLICE_AXIS[grid], 0)
    # the only bright slice, not in the middle, so that a slice counted from the wrong end is found
    slices[2][slices[2] > 0] = np.where(np.arange((slices[2] > 0).sum()) % 3 == 0, 170, 100)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "image.nii.gz")
    write_mask(tmp_path / "mask.nii.gz", (image == 170).astype(np.uint8), affine)
    path = str(tmp_path / "image.nii.gz")
    labels = mask_labels(str(tmp_path / "mask.nii.gz"), image_grid(path))
    assert labels == [int(n == 2) for n in range(len(slices))]
    preprocessing = declared("preprocessing")
    dataset = SliceDataset([{"image": path, "label": labels}], preprocessing, str(tmp_path / "cache"), 0.5)
    by_mask = {"image": path, "label": str(tmp_path / "mask.nii.gz")}
    assert SliceDataset([by_mask], preprocessing, str(tmp_path / "cache"), 0.5).labels == dataset.labels
    bright = [int(float(dataset[i]["image"].max()) > 0.3) for i in range(len(dataset))]
    assert dataset.labels == bright and sum(bright) == 1


def test_masks_that_can_not_be_used_are_named(tmp_path: Path) -> None:
    image = write_head(tmp_path, "plain")["image"]
    affine = GRIDS["plain"][1]
    mask = marks("plain", LABELS)
    moved = write_mask(tmp_path / "moved.nii.gz", mask, nib.affines.from_matvec(np.eye(3), (0, 0, 1)) @ affine)
    small = write_mask(tmp_path / "small.nrrd", mask[1:], affine)
    other = write_mask(tmp_path / "other.nii.gz", mask * 100, affine)
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    for name in (moved.name, small.name):
        with pytest.raises(ValueError, match=f"{name}: lies on another grid than .*flair.nii.gz"):
            mask_labels(str(tmp_path / name), image_grid(image))
    with pytest.raises(ValueError, match=r"other.nii.gz: holds the value 100; allowed are 0, 1 \(anomaly\) and 2"):
        mask_labels(str(other), image_grid(image))
    with pytest.raises(ValueError, match="broken.nii.gz: can't be read as a mask"):
        mask_labels(str(tmp_path / "broken.nii.gz"), image_grid(image))


def test_labels_without_a_mask(tmp_path: Path) -> None:
    image = write_head(tmp_path, "sagittal")["image"]
    assert tag_labels(image, "healthy") == [0] * 6
    assert tag_labels(image, LABELS) == LABELS
    with pytest.raises(ValueError, match='flair.nii.gz: "diseased" doesn\'t say which slices are'):
        tag_labels(image, "diseased")
    for wrong in ([0, 1], [0, 1, 2, 0, 0, 0], "ill", 1):
        with pytest.raises(ValueError, match="a list with 0, 1 or -1 for each of its 6 slices, got"):
            tag_labels(image, wrong)


@pytest.mark.parametrize("seed", range(20))
def test_both_classes_are_on_both_sides_whatever_the_shuffle(seed: int) -> None:
    both, healthy, diseased = {0, 1}, {0}, {1}
    for classes in (
        [healthy, healthy, diseased, diseased],
        [both, healthy, diseased],
        [both, both],
        [*[healthy] * 8, both, both],
        [*[both] * 10, diseased],
    ):
        patients = {f"P{i}": c for i, c in enumerate(classes)}
        for share in (0.01, 0.2, 0.99):
            chosen = split_patients(patients, share, seed)
            for side in (chosen, patients.keys() - chosen):
                assert set().union(*(patients[p] for p in side)) == both
    patients = {f"P{i}": both for i in range(10)}
    assert len(split_patients(patients, 0.2, seed)) == 2
    assert split_patients(patients, 0.2, seed) == split_patients(dict(reversed(patients.items())), 0.2, seed)


def test_too_few_labels_say_how_many_more() -> None:
    with pytest.raises(
        MONAILabelException, match="There are 0 with healthy and 0 .* label 2 more with healthy .* and 2 more with"
    ):
        split_patients({}, 0.2, 0)
    with pytest.raises(MONAILabelException, match="There are 3 with healthy and 1 with .*; label 1 more with") as error:
        split_patients({"A": {0, 1}, "B": {0}, "C": {0}}, 0.2, 0)
    assert error.value.error == MONAILabelError.INVALID_INPUT  # of readers, not a fault of the server


def test_loss_and_minutes_left_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine = Engine(lambda e, b: {"loss": torch.tensor(float(b))})
    TrainingLog(10, every_seconds=0).attach(engine)
    engine.run([1, 3])
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("lib.fine_tuning")]
    assert lines == [
        "iteration 1: loss 1.0000, at most 10.0 minutes left",
        "iteration 2: loss 3.0000, at most 10.0 minutes left",
    ]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the bundle with tiny networks that are sure of the wrong thing."""
    folder = tmp_path / "bundle"
    shutil.copytree(Path(bundle_root()) / "configs", folder / "configs")
    (folder / "models").mkdir()
    shutil.copy(Path(bundle_root()) / "models" / "brain.pt", folder / "models")
    torch.manual_seed(0)
    for network, name in (("classifier_def", "classifier"), ("network_def", "model")):
        state = declared(network, **TINY).state_dict()
        state[list(state)[-1]] += torch.tensor([4.0, -4.0]) if name == "classifier" else 4.0
        torch.save(state, folder / "models" / f"{name}.pt")
    return folder


class AnyLabels(LocalDatastore):
    """Studies of a model's own images alone, with labels that no check has seen."""

    def taken_by(self, images: Sequence[str], modalities: Sequence[str]) -> list[str]:
        return list(images)

    def named(self, image_id: str) -> str | None:
        return None


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[AnyLabels]:
    """Four patients in five images with labels; more that can't be used."""
    folder = tmp_path / "studies"
    (folder / "labels" / "final").mkdir(parents=True)
    affine = GRIDS["plain"][1]
    for name in ("a", "b1", "b2", "c", "d", "unlabelled", "diseased", "shifted", "unreadable", "unseen"):
        (folder / write_head(tmp_path, "plain", name)["image"]).rename(folder / f"{name}.nii.gz")
    final = folder / "labels" / "final"
    for name in ("a", "b1"):
        write_mask(final / f"{name}.nii.gz", marks("plain", LABELS), affine)
    write_mask(final / "shifted.nii.gz", marks("plain", LABELS), 2 * affine)
    write_mask(final / "unseen.nii.gz", marks("plain", [-1] * 6), affine)
    (folder / "unreadable.nii.gz").write_bytes(b"no image")
    store = AnyLabels(str(folder), auto_reload=False)
    store.save_label("c", str(write_mask(tmp_path / "c.seg.nrrd", marks("plain", LABELS), affine)), "final", {})
    # "$" would be run if it came into the config as text; where there is a mask, "healthy" counts for nothing
    for name, info in {
        "a": {"PatientID": "$1/0", "image_label": "healthy"},
        "b1": {"PatientID": "B"},
        "b2": {"PatientID": "B", "image_label": "healthy"},
        "d": {"image_label": LABELS},
        "diseased": {"image_label": "diseased"},
        "unreadable": {"image_label": "healthy"},
    }.items():
        store.update_image_info(name, info)
    yield store


def test_only_images_of_the_model_are_taken(tmp_path: Path) -> None:
    """Of all that another model's readers labelled too: radiographs, and series of other sequences."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("1_flair", "1_t1", "2"):
        Path(write_head(tmp_path, "plain", name)["image"]).rename(folder / f"{name}.nii.gz")
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(folder / "chest.png")
    store = FolderStudies(str(folder), [["FLAIR"], ["T1"]], pictures=True, auto_reload=False)
    assert set(store.list_images()) == {"1_flair", "1_t1", "2", "chest"}
    for image in store.list_images():
        store.update_image_info(image, {"image_label": "healthy"})

    def taken(modalities: list[str], sequences: list[str]) -> list[str]:
        return [Path(study.image).name for study in labelled_studies(store, modalities, sequences)[0]]

    assert taken(["MR"], ["FLAIR"]) == ["1_flair.nii.gz", "2.nii.gz"]
    assert taken(["MR"], ["T1"]) == ["1_t1.nii.gz", "2.nii.gz"]
    assert taken(["MR"], []) == ["1_flair.nii.gz", "1_t1.nii.gz", "2.nii.gz"]


def fine_tune(bundle: Path, config: str = "train_classifier", **overrides: Any) -> FineTune:
    return FineTune(bundle, configs(config), "fine-tune", **{**TINY, "ema#momentum": 0.5, **overrides})


def configs(config: str) -> list[str]:
    return [f"{name}.json" for name in OVERLAYS[config]]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_options_are_few_and_checked(bundle: Path, studies: AnyLabels) -> None:
    task = FineTune(bundle, configs("train_classifier"), "fine-tune the classifier")
    assert task.info()["description"] == "fine-tune the classifier"
    numbers = {"max_images": 8000, "max_minutes": 10, "val_split": 0.2, "learning_rate": 3e-5, "batch_size": 16}
    assert {k: v for k, v in task.config().items() if k != "device"} == numbers
    assert FineTune(bundle, configs("train"), "").config()["learning_rate"] == 2e-5
    assert task.stats() == {}
    json.dumps(task.info(), allow_nan=False)
    for name, wrong in (
        *(("val_split", v) for v in (1, 0, -0.2, "half", "nan")),
        *(("max_minutes", v) for v in (0, [1])),
        *(("learning_rate", v) for v in (-1, "$1/0")),
        *(("batch_size", v) for v in (0, 0.5)),
        ("max_images", 0.5),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a number above 0.*, got "):
            task({name: wrong}, studies)
    with pytest.raises(ValueError, match="device must be one of .*, got '\\$print"):
        task({"device": "$print()"}, studies)


def test_better_weights_are_published_and_the_old_ones_kept(
    bundle: Path, studies: AnyLabels, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = contents(bundle / "models")
    task = fine_tune(bundle)
    report = task(
        {"model": "classifier", "learning_rate": "3e-4", "batch_size": 4, "max_images": 40, "max_minutes": 5}, studies
    )
    assert report["published"] and report["after"]["val_loss"] < report["before"]["val_loss"]
    assert report["before"].keys() == report["after"].keys() >= {"val_auroc_t0", "val_accuracy_t750"}
    assert report["patients"] == {"train": 3, "validation": 1}
    # four patients, so both images of B are on one side
    # slices 0 and 5 are out of the trained range, 2 is unknown; b2 adds four healthy slices
    slices = report["slices"]
    assert sum(s["anomalous"] for s in slices.values()) == 8 and sum(s["healthy"] for s in slices.values()) == 8
    assert report["iterations"] == 10 and report["skipped"] == 4
    # nothing else is left, and the file under the old name is whole
    after = contents(bundle / "models")
    assert after.keys() == {*before, report["kept"], "classifier.finetune.json"}
    assert after[report["kept"]] == before["classifier.pt"] and after["classifier.pt"] != before["classifier.pt"]
    assert after["model.pt"] == before["model.pt"]
    assert report["kept"].startswith("classifier-2") and report["kept"].endswith("Z.pt")
    torch.load(bundle / "models" / "classifier.pt", weights_only=True)
    assert task.stats() == FineTune(bundle, configs("train_classifier"), "").stats() == report
    assert FineTune(bundle, configs("train"), "").stats() == {}
    log = [r.getMessage() for r in caplog.records if r.name.startswith("lib.fine_tuning")]
    for name, why in {
        "diseased": "doesn't say which slices",
        "shifted": "lies on another grid",
        "unreadable": "can't be read",
        "unseen": "the label of each slice is unknown",
    }.items():
        assert any(line.startswith(f"skipped {name}: ") and why in line for line in log)
    assert "5 images with labels; 4 skipped; 1 without a label" in log
    assert any(line.startswith("validation before: val_loss") for line in log)
    assert any(line.startswith("iteration 10: loss") and "minutes left" in line for line in log)
    assert any(line.endswith(f"published; the old weights are {report['kept']}") for line in log)


def test_two_runs_are_the_same(bundle: Path, studies: AnyLabels) -> None:
    weights = (bundle / "models" / "classifier.pt").read_bytes()
    reports = []
    for _ in range(2):
        (bundle / "models" / "classifier.pt").write_bytes(weights)
        reports.append(fine_tune(bundle)({"learning_rate": 3e-4, "batch_size": 4, "max_images": 20}, studies))
    assert reports[0]["after"] == reports[1]["after"] != reports[0]["before"]


def test_worse_weights_are_not_published(bundle: Path, studies: AnyLabels) -> None:
    before = contents(bundle / "models")
    # away from the labels instead of to them
    uphill: dict[str, Any] = {"optimizer#maximize": True}
    task = fine_tune(bundle, **uphill)
    report = task({"learning_rate": 3e-4, "batch_size": 4, "max_images": 20}, studies)
    assert report["after"]["val_loss"] > report["before"]["val_loss"]
    assert report["published"] is False and report["kept"] is None
    after = contents(bundle / "models")
    assert after.pop("classifier.finetune.json") and after == before
    assert task.stats() == report


def test_a_loss_that_is_no_number_publishes_nothing(bundle: Path, studies: AnyLabels) -> None:
    before = contents(bundle / "models")
    listening = [*logging.getLogger().handlers], signal.getsignal(signal.SIGINT)
    with pytest.raises(
        ValueError,
        match="the loss is nan at step 2, so nothing more was saved; begin anew with a smaller learning_rate",
    ):
        fine_tune(bundle)({"learning_rate": 1e30, "max_images": 160}, studies)
    assert contents(bundle / "models") == before
    # its log in the folder that has gone would fail whatever this process logs
    assert ([*logging.getLogger().handlers], signal.getsignal(signal.SIGINT)) == listening
    # one step is enough for weights that are no numbers, and too few for a loss that is none
    report = fine_tune(bundle, "train")({"learning_rate": 1e30, "max_images": 8}, studies)
    assert report["published"] is False and report["after"]["val_loss"] is None
    json.dumps(report, allow_nan=False)
    assert contents(bundle / "models").items() >= before.items()


def test_a_crash_leaves_nothing_behind(bundle: Path, studies: AnyLabels, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(bundle / "models")
    # and what a killed run left is removed
    (bundle / "models" / "classifier.finetune" / "cache").mkdir(parents=True)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    def fails_on_weights(source: Any, target: Any, replace: Any = os.replace) -> None:
        fails() if target == bundle / "models" / "classifier.pt" else replace(source, target)

    for what, how in {
        "torch.optim.AdamW.step": fails,
        "lib.fine_tuning.fine_tune.shutil.copy2": fails,
        "os.replace": fails_on_weights,
    }.items():
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
            patch.setattr(what, how)
            fine_tune(bundle)({"learning_rate": 3e-4, "batch_size": 4, "max_images": 40}, studies)
        assert contents(bundle / "models") == before


def test_two_at_once_do_not_share_a_folder(bundle: Path, studies: AnyLabels, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(bundle / "models")
    (bundle / "models" / "classifier.finetune.lock").touch()  # of a run that was killed
    refused = []

    def second(self: FineTune, options: Any, studies: Any, skipped: int, folder: Path) -> dict[str, Any]:
        (folder / "kept").touch()
        with pytest.raises(MONAILabelException, match="classifier.pt is being fine-tuned already") as refusal:
            FineTune.__call__(fine_tune(bundle), {}, any_labels)
        refused.append(refusal.value.error)
        assert (folder / "kept").exists()
        return {}

    any_labels = studies
    monkeypatch.setattr(FineTune, "_fine_tune", second)
    for _ in range(2):
        assert fine_tune(bundle)({}, studies) == {}
        assert contents(bundle / "models") == before
    assert refused == [MONAILabelError.SERVER_ERROR] * 2


def test_too_few_labels_stop_before_anything_is_done(bundle: Path, studies: AnyLabels) -> None:
    before = contents(bundle / "models")
    for name in ("b1", "c", "d"):
        studies.update_image_info(name, {"PatientID": "$1/0"})
    with pytest.raises(
        MONAILabelException, match="There are 2 with healthy and 1 with diseased slices that can be used; label 1"
    ):
        fine_tune(bundle)({}, studies)
    assert contents(bundle / "models") == before


def test_slices_out_of_the_trained_range_do_not_count(
    bundle: Path, studies: AnyLabels, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b1", "c", "d"):
        studies.remove_label(name, "final") if name != "d" else None
        studies.update_image_info(name, {"image_label": [1, 0, 0, 0, 0, 1]})
    studies.update_image_info("b2", {"image_label": [1, -1, -1, -1, -1, 1]})
    with pytest.raises(MONAILabelException, match="There are 4 with healthy and 1 with diseased"):
        fine_tune(bundle)({}, studies)
    assert any("b2.nii.gz: the preprocessing leaves no labelled slice" in r.getMessage() for r in caplog.records)


def test_the_diffusion_network_is_tuned_alike(bundle: Path, studies: AnyLabels) -> None:
    before = contents(bundle / "models")
    report = fine_tune(bundle, "train")({"learning_rate": 3e-3, "batch_size": 4, "max_images": 20}, studies)
    assert report["published"] and report["before"].keys() == {"val_loss"} and report["kept"].startswith("model-2")
    after = contents(bundle / "models")
    assert after.keys() == {*before, report["kept"], "model.finetune.json"}
    assert after["classifier.pt"] == before["classifier.pt"]
