"""Training with MONAI's own command: batches, balance, checkpoints, resumption after a kill, EMA weights."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import MetaTensor, get_track_meta
from monai.networks.schedulers import DDIMScheduler
from monai.transforms import Compose, RandShiftIntensityd, ScaleIntensityRanged
from monai.utils import set_determinism

from gaussians import NoisedClassifier, exact
from scripts.bundle import bundle_root, cache_dir, declared
from scripts.device import compilation_pays
from scripts.learning.checkpoint import ResumableCheckpoint
from scripts.learning.datalists import brain_mr
from scripts.learning.datasets import SliceDataset, random_sampler
from scripts.learning.handlers import ClipGradients, MinutesLimit
from scripts.learning.noising import AtNoiseLevel, AutocastDiffusionInferer, AutocastInferer, NoisedPrepareBatch
from scripts.learning.pseudo_labels import PseudoLabels, filled
from scripts.running.report import Report
from scripts.weights import MANIFEST, for_training, not_together, weights_digest
from synthetic import write_head

TINY = {
    "spatial_dims": 2,
    "in_channels": 1,
    "channels": [8, 8],
    "attention_levels": [False, False],
    "num_res_blocks": 1,
}
TINY_NETS = {
    "train": {
        "_target_": "DiffusionModelUNet",
        "out_channels": 1,
        "norm_num_groups": 4,
        "num_head_channels": 8,
        **TINY,
    },
    "train_classifier": {
        "_target_": "DiffusionModelEncoder",
        "out_channels": 2,
        "input_shape": [72, 88],
        "norm_num_groups": 4,
        "num_head_channels": 8,
        **TINY,
    },
    "train_student": {
        "_target_": "BasicUNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 1,
        "features": [4] * 6,
    },
}


def datalist(folder: Path) -> list[dict[str, Any]]:
    """Two volumes with a label a slice, one with one label for all, one that can't be read."""
    items = [write_head(folder, grid, name=grid) for grid in ("plain", "flipped", "oblique")]
    depth = {"plain": 6, "flipped": 6, "oblique": 7}
    for i in items[:2]:
        i["label"] = [z % 2 for z in range(depth[i["name"]])]
    items[2]["label"] = 1
    items.append({"image": str(folder / "missing.nii.gz"), "label": 0, "name": "missing"})
    return [{k: v for k, v in i.items() if k != "name"} | {"subject": i["name"]} for i in items]


def test_slices_are_read_from_disk_with_their_own_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = SliceDataset(datalist(tmp_path), declared("preprocessing"), str(tmp_path / "cache"), 0.5)
    assert "missing.nii.gz: no such file" in caplog.text
    assert "1 of 4 volumes were left out; the next start tries them again" in caplog.text
    assert dataset[0]["image"].shape == (1, 72, 88) and dataset[0]["image"].dtype == torch.float32
    assert float(dataset[0]["image"].min()) == -1.0
    by_subject = {
        s: [x for x, who in zip(dataset.labels, dataset.subjects, strict=True) if who == s] for s in dataset.subjects
    }
    # "plain" rises and "flipped" falls through its file; assessed are the middle slices 1 to 4
    assert by_subject["plain"] == [1, 0, 1, 0]
    assert by_subject["flipped"] == [0, 1, 0, 1]
    assert set(by_subject["oblique"]) == {1}


BROUGHT: list[str] = []
"""The volumes that `noted` saw."""

FAULT: dict[str, Exception] = {}
"""What `noted` raises at which volume."""

WATCH: dict[str, Path] = {}
"""A file to which `noted` adds each volume, for processes other than this one."""


def noted(data: dict[str, Any]) -> dict[str, Any]:
    """The last transform of a preprocessing."""
    name = Path(data["image"].meta["filename_or_obj"]).name.split(".")[0]
    if name in FAULT:
        raise FAULT[name]
    BROUGHT.append(name)
    for path in WATCH.values():
        with path.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(0.3)
    return data


def noting(*transforms: Any) -> Compose:
    return Compose([*declared("preprocessing").transforms, *transforms, noted])


def built(folder: Path, items: list[dict[str, Any]], *transforms: Any, cache: str = "cache") -> SliceDataset:
    BROUGHT.clear()
    return SliceDataset(items, noting(*transforms), str(folder / cache), 0.5)


def test_a_volume_is_preprocessed_once(tmp_path: Path) -> None:
    """Whatever the labels and the other volumes are, and whatever failed; another setting, however deep, is another volume."""
    items = datalist(tmp_path)
    dataset = built(tmp_path, items[1:])
    assert BROUGHT == ["flipped", "oblique"]
    again = built(tmp_path, [item | {"label": 1} for item in items[:3]])
    assert BROUGHT == ["plain"] and set(again.labels) == {1}
    assert torch.equal(again[4]["image"], dataset[0]["image"]) and again.digest != dataset.digest
    assert built(tmp_path, items[1:]).digest == dataset.digest and not BROUGHT
    for top in (1.0, 2.0, 1.0):
        built(tmp_path, items[:1], ScaleIntensityRanged("image", -1, top, -1, 1))
    assert not BROUGHT
    built(tmp_path, items[:1], ScaleIntensityRanged("image", -1, 3.0, -1, 1))
    assert BROUGHT == ["plain"]


def test_a_file_replaced_in_place_is_another_volume(tmp_path: Path) -> None:
    items = datalist(tmp_path)[:2]
    before = built(tmp_path, items)
    darker = nib.load(items[1]["image"])
    data = darker.get_fdata(dtype=np.float32)
    data[data == 170] = 100  # without its lesion
    data *= np.linspace(1, 1.005, len(data), dtype=np.float32)[:, None, None]  # one value alone is no image
    nib.save(nib.Nifti1Image(data, darker.affine), items[1]["image"])
    after = built(tmp_path, items)
    assert BROUGHT == ["flipped"]
    n = before.subjects.index("flipped")
    assert after.labels == before.labels
    assert torch.equal(after[n - 1]["image"], before[n - 1]["image"])
    assert (
        float(before[n + 1]["image"].max()) == pytest.approx(0.7, abs=0.01)
        and float(after[n + 1]["image"].max()) < 0.01
    )
    mask = nib.load(items[0]["foreground"])
    nib.save(nib.Nifti1Image(np.roll(np.asarray(mask.dataobj), 3, axis=0), mask.affine), items[0]["foreground"])
    built(tmp_path, items)
    assert BROUGHT == ["plain"]


def test_a_volume_that_failed_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = datalist(tmp_path)
    built(tmp_path, items)
    (tmp_path / "plain.nii.gz").rename(tmp_path / "moved.nii.gz")
    assert set(built(tmp_path, items).subjects) == {"flipped", "oblique"}
    (tmp_path / "moved.nii.gz").rename(tmp_path / "missing.nii.gz")
    items[3]["foreground"] = items[0]["foreground"]
    assert set(built(tmp_path, items).subjects) == {"flipped", "oblique", "missing"} and BROUGHT == ["missing"]
    assert "plain.nii.gz: no such file" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        torch.OutOfMemoryError("no room"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: no room"),
        OSError(errno.ENOSPC, "no room"),
    ],
)
def test_a_build_without_room_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    items = datalist(tmp_path)[:3]
    monkeypatch.setitem(FAULT, "flipped", error)
    with pytest.raises(
        RuntimeError, match="flipped.nii.gz: stopped here, as memory, disk or open files ran out .*no room"
    ):
        built(tmp_path, items)
    assert BROUGHT == ["plain"]
    monkeypatch.delitem(FAULT, "flipped")
    dataset = built(tmp_path, items)
    assert BROUGHT == ["flipped", "oblique"]
    assert dataset.digest == built(tmp_path, items, cache="other").digest


def test_a_cache_file_that_is_not_whole_is_made_anew(tmp_path: Path) -> None:
    items = datalist(tmp_path)[:2]
    whole = built(tmp_path, items).digest
    for path, size in zip(sorted((tmp_path / "cache").glob("*.npy")), (0, 10000), strict=True):
        path.write_bytes(path.read_bytes()[:size])
    assert built(tmp_path, items).digest == whole and len(BROUGHT) == 2


def forked(work: Callable[[], Any]) -> Any:
    """Another process that does this; it has no thread but its own."""

    def alone() -> None:
        torch.set_num_threads(1)
        work()

    process = multiprocessing.get_context("fork").Process(target=alone)
    process.start()
    return process


def test_two_processes_build_one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = datalist(tmp_path)[:3]
    monkeypatch.setitem(WATCH, "log", tmp_path / "log")
    digests = tmp_path / "digests"

    def work() -> None:
        digest = built(tmp_path, items).digest
        with digests.open("a") as file:
            file.write(f"{digest}\n")

    processes = [forked(work) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted((tmp_path / "log").read_text().split()) == ["flipped", "oblique", "plain"]
    monkeypatch.delitem(WATCH, "log")
    assert digests.read_text().split() == 2 * [built(tmp_path, items, cache="other").digest]


def test_a_build_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = datalist(tmp_path)[:3]
    monkeypatch.setitem(WATCH, "log", tmp_path / "log")
    process = forked(lambda: built(tmp_path, items))
    limit = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("*.npy")) and time.monotonic() < limit:
        time.sleep(0.01)
    process.kill()
    process.join(60)
    monkeypatch.delitem(WATCH, "log")
    assert process.exitcode == -signal.SIGKILL
    done = len(list((tmp_path / "cache").glob("*.npy")))
    assert 1 <= done < 3
    dataset = built(tmp_path, items)
    assert len(BROUGHT) == 3 - done
    assert dataset.digest == built(tmp_path, items, cache="other").digest


def test_a_cache_that_can_not_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(
        ValueError, match="cache: this cache can't be written .*; give a folder that can be as --cache_dir"
    ):
        built(tmp_path, datalist(tmp_path)[:1])
    assert cache_dir() == f"{bundle_root()}/cache"
    monkeypatch.setattr(os, "access", lambda path, mode: path != bundle_root())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == str(tmp_path / "diffusion-anomaly-bundle")


def test_a_label_is_needed_for_each_slice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain.nii.gz: has 3 labels, fewer than slices"):
        built(tmp_path, [datalist(tmp_path)[0] | {"label": [0, 1, 0]}])


def test_no_labelled_slice_is_an_error(tmp_path: Path) -> None:
    items = [{"image": str(tmp_path / "missing.nii.gz"), "label": 0}]
    with pytest.raises(ValueError, match="no labelled slice"):
        SliceDataset(items, declared("preprocessing"), str(tmp_path), 0.5)


def test_balanced_sampling_draws_both_classes_equally() -> None:
    class Fake:
        labels = [0] * 90 + [1] * 10

    drawn = torch.tensor(Fake.labels)[list(random_sampler(Fake(), 4000, True, 0))]  # type: ignore[arg-type]
    assert abs(drawn.float().mean().item() - 0.5) < 0.03
    drawn = torch.tensor(Fake.labels)[list(random_sampler(Fake(), 4000, False, 0))]  # type: ignore[arg-type]
    assert abs(drawn.float().mean().item() - 0.1) < 0.02


def test_foreground_mr_needs_its_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="slices.csv: not found; give the folder"):
        brain_mr(str(tmp_path), "train")
    (tmp_path / "slices.csv").write_text("patient,z,split,has_tumour,mid_slice\nA,0,train,1,1\nA,1,train,0,0\n")
    [item] = brain_mr(str(tmp_path), "train")
    assert item["label"] == [1, -1] and item["spacing"] == [1.8, 1.8, 72.5] and item["subject"] == "A"
    with pytest.raises(ValueError, match="no patient is in split 'val'"):
        brain_mr(str(tmp_path), "val")


def test_foreground_mr_with_its_own_masks_leaves_out_those_not_trusted(tmp_path: Path) -> None:
    header = "patient,z,split,has_tumour,mid_slice,brain_mask_trusted\n"
    (tmp_path / "slices.csv").write_text(header + "A,0,train,1,1,1\nB,0,train,0,1,0\n")
    assert [i["subject"] for i in brain_mr(str(tmp_path), "train")] == ["A", "B"]
    [item] = brain_mr(str(tmp_path), "train", brain_masks=True)
    assert (item["subject"], item["foreground"]) == ("A", str(tmp_path / "volumes" / "A" / "brain.nii.gz"))


class FakeSlices:
    """Eight slices of 4 x 4, every second one diseased: brain at 0, and in the diseased a bright square, some brighter.

    Patient B's squares are faint, of an eighth of the brightness.
    """

    digest = "fake"
    labels = [0, 1] * 4
    subjects = ["A"] * 6 + ["B"] * 2

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = torch.zeros(1, 4, 4)
        image[0, 0] = -1
        if self.labels[i]:
            image[0, 2:, 2:] = (0.5 + 0.05 * i) * (1 if self.subjects[i] == "A" else 0.125)
            image[0, 1, 1] = 0.2 if self.subjects[i] == "A" else 0.02
        return {"image": image, "label": self.labels[i]}

    def foreground(self, i: int) -> torch.Tensor:
        return self[i]["image"] > -1


def healed(x: torch.Tensor, foreground: torch.Tensor, network: Any) -> dict[str, torch.Tensor]:
    """A perfect teacher: the foreground is 0 everywhere."""
    return {"counterfactual": torch.where(foreground, 0.0, x), "probability": torch.ones(len(x))}


def pseudo_labels(folder: Path, slices: Any, batch_size: int = 2) -> PseudoLabels:
    teacher = exact(NoisedClassifier(), guidance_scale=1.0, batch_size=batch_size)
    teacher.slices = healed
    return PseudoLabels(slices, teacher, torch.nn.Conv2d(1, 1, 1), "hyperintense", 1, str(folder))


def test_pseudo_labels_are_what_the_teacher_brought_back(tmp_path: Path) -> None:
    """The map is the brightness: Otsu's threshold parts 0.2 from 0.55 and more, and healthy slices are empty.

    Patient B's square at 0.106 is below that of all, 0.2, but above B's own, 0.02, and their geometric mean, 0.06.
    """
    torch.manual_seed(0)
    dataset = pseudo_labels(tmp_path, FakeSlices())
    assert 0.19 < dataset.threshold < 0.55 and len(dataset) == 8 and dataset.labels == FakeSlices.labels
    for i in range(8):
        item = dataset[i]
        expected = torch.zeros(1, 4, 4)
        if i % 2:
            expected[0, 2:, 2:] = 1 if i < 6 else 2 / 3
            item["label"][0, 1, 1] = 0  # so near a threshold that a rounding decides
        torch.testing.assert_close(item["label"], expected)
        assert torch.equal(item["image"], FakeSlices()[i]["image"])


def test_a_dark_core_belongs_to_its_lesion() -> None:
    """A ring of 0.8 with a gap of 0.5 fills to 0.5, a closed ring to 0.8; what touches the edge is no hole."""
    a = torch.zeros(2, 1, 5, 6)
    a[:, 0, 1:4, 1:4] = 0.8
    a[:, 0, 2, 2] = 0.1
    a[1, 0, 1, 2] = 0.5
    a[:, 0, 0, 5] = 0.3
    expected = a.clone()
    expected[0, 0, 2, 2], expected[1, 0, 2, 2] = 0.8, 0.5
    torch.testing.assert_close(filled(a), expected)


def test_every_draw_is_augmented_anew(tmp_path: Path) -> None:
    """Also under a global seed, with which MONAI seeds a `Compose` anew whenever one asks whether it is true."""
    slices = SliceDataset(datalist(tmp_path), declared("preprocessing"), str(tmp_path / "cache"), 0.5)
    set_determinism(0)
    try:
        for dataset in (slices, pseudo_labels(tmp_path, FakeSlices())):
            shift = RandShiftIntensityd("image", offsets=0.5, prob=1.0)
            dataset.transform = Compose([shift]).set_random_state(0)
            shifts = [float(dataset[0]["image"][0, 0, 0]) for _ in range(20)]
            assert len(set(shifts)) == 20 and max(shifts) - min(shifts) > 0.5
            assert not isinstance(dataset[0]["image"], MetaTensor) and get_track_meta()
    finally:
        set_determinism(None)


def test_making_pseudo_labels_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    whole = pseudo_labels(tmp_path, FakeSlices())
    [path] = tmp_path.glob("maps-*.f16")
    content = path.read_bytes()
    path.write_bytes(content[: 32 * 3 + 5])  # killed within the fourth map, so the second batch is made again
    seen: list[int] = []
    monkeypatch.setitem(
        globals(), "healed", lambda x, inside, n, heal=healed: (seen.append(len(x)), heal(x, inside, n))[1]
    )
    torch.manual_seed(0)
    assert pseudo_labels(tmp_path, FakeSlices()).threshold == whole.threshold
    assert seen == [2] and path.read_bytes() == content


def test_two_processes_make_the_same_pseudo_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected = pseudo_labels(tmp_path / "alone", FakeSlices())
    seen = tmp_path / "seen"

    def slow(x: torch.Tensor, foreground: torch.Tensor, network: Any, heal: Any = healed) -> dict[str, torch.Tensor]:
        with seen.open("a") as file:
            file.write("batch\n")
        time.sleep(0.3)
        return dict(heal(x, foreground, network))

    def work() -> None:
        torch.set_rng_state(state)
        assert pseudo_labels(tmp_path / "both", FakeSlices()).threshold == expected.threshold

    monkeypatch.setitem(globals(), "healed", slow)
    processes = [forked(work) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert seen.read_text().count("batch") == 2  # of two maps each, by one of the two
    [alone], [both] = ((tmp_path / name).glob("*.f16") for name in ("alone", "both"))
    assert both.read_bytes() == alone.read_bytes() and both.name == alone.name


def test_pseudo_labels_need_a_diseased_slice(tmp_path: Path) -> None:
    slices = FakeSlices()
    slices.labels = [0] * 8
    with pytest.raises(ValueError, match="no slice is labelled diseased"):
        pseudo_labels(tmp_path, slices)


def test_prepare_batch_for_training_and_validation() -> None:
    batch = {"image": torch.rand(3, 1, 4, 4), "label": torch.tensor([0, 1, 1])}
    torch.manual_seed(0)
    images, target, _, extra = NoisedPrepareBatch(1000, "noise")(batch)
    assert torch.equal(target, extra["noise"]) and images.shape == target.shape
    assert extra["timesteps"].shape == (3,) and 0 <= extra["timesteps"].min() and extra["timesteps"].max() < 1000
    prepare = NoisedPrepareBatch(1000, "label", noise_levels=[0, 500], seed=3)
    images, target, _, extra = prepare(batch)
    assert images.shape == (6, 1, 4, 4) and target.tolist() == [0, 1, 1, 0, 1, 1]
    assert extra["timesteps"].tolist() == [0, 0, 0, 500, 500, 500]
    torch.rand(5)
    assert torch.equal(prepare(batch)[3]["noise"], extra["noise"])
    with pytest.raises(ValueError, match="target must be"):
        NoisedPrepareBatch(1000, "mask")


def test_metrics_at_one_noise_level() -> None:
    output = {
        "pred": torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 0.0], [0.0, 0.0]]),
        "label": torch.tensor([0, 1, 0, 1]),
    }
    pred, label = AtNoiseLevel(0, 2)(output)
    assert torch.equal(pred, output["pred"][:2]) and label.tolist() == [0, 1]
    pred, _ = AtNoiseLevel(1, 2, probability=True)(output)
    assert pred.tolist() == [0.5, 0.5]


def test_autocast_runs_the_network_in_low_precision_and_returns_float32() -> None:
    seen = []

    def network(x: torch.Tensor, timesteps: torch.Tensor, context: None) -> torch.Tensor:
        y = torch.nn.functional.conv2d(x, torch.ones(1, 1, 1, 1))
        seen.append(y.dtype)
        return y

    x, t = torch.rand(2, 1, 4, 4), torch.tensor([1, 2])
    for precision in ("float32", "bfloat16"):
        out = AutocastDiffusionInferer(DDIMScheduler(1000), precision=precision)(x, network, noise=x, timesteps=t)
        assert out.dtype == torch.float32
        out = AutocastInferer(precision=precision)(x, lambda y: network(y, t, None))
        assert out.dtype == torch.float32
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    with pytest.raises(ValueError, match="precision must be"):
        AutocastDiffusionInferer(DDIMScheduler(1000), precision="int8")


def test_time_limit_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate falls along half a cosine, in twenty steps, of each group from its own."""
    clock = 100.0

    def step(engine: Engine, batch: int) -> None:
        nonlocal clock
        clock += 0.75  # of 60 s: every fourth iteration is a twentieth

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    engine = Engine(step)
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1], "lr": 0.8}, {"params": parameters[1:], "lr": 0.4}])
    rates: list[tuple[float, float]] = []
    MinutesLimit(1, optimizer).attach(engine)
    engine.add_event_handler(
        Events.ITERATION_STARTED, lambda e: rates.append(tuple(g["lr"] for g in optimizer.param_groups))
    )
    engine.run(range(1000), max_epochs=1)
    assert engine.state.iteration == 80 and rates[:4] == [(0.8, 0.4)] * 4
    assert rates[40] == pytest.approx((0.4, 0.2)) and rates[43] == rates[40]
    assert rates[79] == pytest.approx([r * (1 + math.cos(math.pi * 0.95)) / 2 for r in (0.8, 0.4)])
    with pytest.raises(ValueError, match="max_minutes must be above 0, got 0"):
        MinutesLimit(0, optimizer)


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    """Bit for bit, trainable and in training's layout; without a file the network is as it was made."""
    torch.manual_seed(0)
    made, given = (torch.nn.Conv2d(2, 2, 3) for _ in range(2))
    before = made.weight.detach().clone()
    torch.save(given.state_dict(), tmp_path / "given.pt")
    assert torch.equal(for_training(made, "cpu").weight, before)
    started = for_training(made, "cpu", str(tmp_path / "given.pt"))
    assert torch.equal(started.weight, given.weight) and all(p.requires_grad for p in started.parameters())
    assert started.training and started.weight.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        for_training(made, "cpu", str(tmp_path / "nowhere.pt"))


def test_gradients_are_clipped() -> None:
    network = torch.nn.Linear(4, 1, bias=False)
    (1000 * network(torch.ones(1, 4))).sum().backward()
    ClipGradients(network, 1.0)._clip(Engine(lambda e, b: None))
    assert network.weight.grad is not None
    assert network.weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_the_ema_weights_are_the_ones_written(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def step(engine: Engine, batch: int) -> None:
        optimizer.zero_grad()
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    engine = Engine(step)
    ema = EMAHandler(network, momentum=0.1)
    ema.attach(engine)
    ResumableCheckpoint(str(tmp_path), network, ema.ema_model, optimizer, {}).attach(engine)
    start = network.weight.detach().clone()
    engine.run(range(3), max_epochs=1)
    # w_k = w_0 - 0.1 k, and the EMA follows by a tenth of the way each time
    lag = 0.0
    for k in (1, 2, 3):
        lag = 0.9 * lag + 0.1 * 0.1 * k
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.allclose(written["weight"], start - lag, atol=1e-6)
    resumed = Engine(step)
    ResumableCheckpoint(str(tmp_path), network, ema.ema_model, optimizer, {}).attach(resumed)
    iterations: list[int] = []
    resumed.add_event_handler(Events.ITERATION_COMPLETED, lambda e: iterations.append(e.state.iteration))
    resumed.run(range(3), max_epochs=2, epoch_length=3)
    assert iterations == [4, 5, 6]


def tiny_run(folder: Path, settings: dict[str, Any], stop: int = 0, **options: Any) -> ResumableCheckpoint:
    """Six iterations of nothing, in which Ctrl-C is pressed at one."""
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    checkpoint = ResumableCheckpoint(str(folder), network, deepcopy(network), optimizer, settings, **options)
    engine = Engine(lambda e, b: os.kill(os.getpid(), signal.SIGINT) if e.state.iteration == stop else None)
    checkpoint.attach(engine)
    engine.run(range(3), max_epochs=2)
    return checkpoint


def test_a_checkpoint_goes_on_with_what_it_was_trained_on_alone(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "first.pt")
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path / "second.pt")
    folder = tmp_path / "run"
    settings = {"data": "4f2a", "network": torch.nn.Conv2d(1, 2, 3), "learning_rate": 0.1}
    tiny_run(folder, settings, initial_weights=str(tmp_path / "first.pt"))
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["data"] == "4f2a" and record["versions"]["torch"] == torch.__version__
    assert record["settings"]["initial_weights"] == hashlib.sha256((tmp_path / "first.pt").read_bytes()).hexdigest()
    before = (folder / "model.pt").read_bytes()
    for other, line in (
        ({"data": "77b1"}, "data was 4f2a, now 77b1"),
        ({"learning_rate": 0.2, "data": "77b1"}, "data was 4f2a, now 77b1; learning_rate was 0.1, now 0.2"),
        ({"network": torch.nn.Conv2d(1, 2, 5)}, "network was .*, now "),
    ):
        with pytest.raises(
            SystemExit, match=f"run: holds a training with other settings: {line}.*another --run_dir, or"
        ):
            tiny_run(folder, settings | other)
    with pytest.raises(SystemExit, match="holds a training that did not begin with .*second.pt"):
        tiny_run(folder, settings, initial_weights=str(tmp_path / "second.pt"))
    assert (folder / "model.pt").read_bytes() == before
    for weights in (None, str(tmp_path / "first.pt")):  # where it began
        tiny_run(folder, settings | {"network": torch.nn.Conv2d(1, 2, 3)}, initial_weights=weights)
    tiny_run(folder, settings | {"data": "77b1"}, overwrite=True)
    assert torch.load(folder / "last.pt", weights_only=True)["settings"]["data"] == "77b1"
    assert (folder / "model.pt").read_bytes() != before


def test_weights_without_a_checkpoint_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"shipped")
    with pytest.raises(SystemExit, match="model.pt: is there already, without a checkpoint to go on from"):
        tiny_run(tmp_path, {})
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit, match="last.pt: can't be read as a checkpoint"):
        tiny_run(tmp_path, {})
    torch.save({"network": {}}, tmp_path / "last.pt")
    with pytest.raises(SystemExit, match="last.pt: doesn't say what it was trained on"):
        tiny_run(tmp_path, {})
    assert (tmp_path / "model.pt").read_bytes() == b"shipped"


def test_ctrl_c_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGINT)
    stopped = tiny_run(tmp_path, {}, stop=2)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 2
    assert not (tmp_path / "model.pt").exists() and signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(SystemExit) as ended:
        stopped.close()
    assert ended.value.code == 130 and "last.pt was saved; the same command goes on" in capsys.readouterr().err
    tiny_run(tmp_path, {}).close()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["iteration"] == 6
    assert (tmp_path / "model.pt").exists()


def publishing(bundle: Path, config: str, run_dir: Path) -> None:
    """What `python -m monai.bundle run publish` does."""
    parser = ConfigParser()
    names = ["train", "train_student"] if config == "train_student" else [config]
    parser.read_config([str(Path(bundle_root()) / "configs" / f"{n}.json") for n in names])
    parser.update({"bundle_root": str(bundle), "run_dir": str(run_dir), "network_def": TINY_NETS[config]})
    parser.get_parsed_content("publish")


def test_publishing_keeps_the_old_weights_and_says_what_belongs_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, models, old = tmp_path, tmp_path / "models", {}
    digests, new = {}, {}
    names = {"train": "model", "train_classifier": "classifier", "train_student": "student"}
    keys = {"train": "network", "train_classifier": "classifier", "train_student": "student"}
    models.mkdir()
    for config, name in names.items():
        for folder, digest in ((models, digests), (tmp_path / config, new)):
            folder.mkdir(exist_ok=True)
            network = ConfigParser({"net": TINY_NETS[config]}).get_parsed_content("net")
            next(network.parameters()).data += len(digest) + (folder != models)
            torch.save(network.state_dict(), folder / (f"{name}.pt" if folder == models else "model.pt"))
            digest[keys[config]] = weights_digest(network)
        old[name] = (models / f"{name}.pt").read_bytes()
        teacher = {"teacher": {k: new[k] for k in ("network", "classifier")}} if name == "student" else {}
        (tmp_path / config / "run.json").write_text(json.dumps({"settings": teacher}))
    manifest = models / "weights.json"
    manifest.write_text(json.dumps({"student": digests, "calibration": {"values": {"threshold": 0.3}, **digests}}))
    report = Report([], str(tmp_path / "out"), {"threshold": 0.3}, {}, {}, manifest=str(manifest))
    assert not_together(manifest, digests, 0.3) == report.warnings == []
    with pytest.raises(SystemExit, match="model.pt: no weights there"):
        publishing(bundle, "train", tmp_path / "nowhere")
    publishing(bundle, "train", tmp_path / "train")
    assert (models / "model.pt").read_bytes() == (tmp_path / "train" / "model.pt").read_bytes()
    [kept] = models.glob("model-*Z.pt")
    assert kept.read_bytes() == old["model"] and kept.name in capsys.readouterr().out
    chosen = "The threshold was chosen for other networks than those in use."
    learned = "The student learned from other networks than those in use."
    mixed = digests | {"network": new["network"]}
    assert not_together(manifest, mixed, 0.3) == [learned, chosen]
    assert not_together(manifest, mixed, 0.31) == [learned]
    assert not_together(manifest, {k: v for k, v in mixed.items() if k != "student"}, 0.31) == []
    publishing(bundle, "train_classifier", tmp_path / "train_classifier")
    assert "run with --student '$None' until there is a student" in capsys.readouterr().out
    publishing(bundle, "train_student", tmp_path / "train_student")
    assert "choose one anew" in capsys.readouterr().out
    assert not_together(manifest, new, 0.3) == [chosen] and not_together(manifest, new, 0.31) == []
    assert {p.stem for p in models.glob("*.pt") if "-2" not in p.stem} == set(old) and not list(models.glob("*.part"))


def test_the_weights_of_the_bundle_belong_together() -> None:
    manifest = Path(bundle_root()) / "models" / MANIFEST
    weights = {n: weights_digest(declared(n, device="cpu")) for n in ("network", "classifier", "student")}
    thresholds = [declared("displayable_configs", overlay)["threshold"] for overlay in (None, "preview")]
    content = json.loads(manifest.read_text())
    values = {"threshold": 0.349, "preview_threshold": 0.436, "temperature": 1.0}
    assert content == {"student": weights, "calibration": {"values": values, **weights}}
    assert thresholds == [0.349, 0.436]
    assert [not_together(manifest, weights, t) for t in thresholds] == [[], []]
    assert len(not_together(manifest, weights | {"network": "0"}, thresholds[0])) == 2


def command(config: str, folder: Path, **overrides: Any) -> list[str]:
    """MONAI's command, as a user types it from any directory, with a small network and data."""
    items = datalist(folder)
    options = {
        "network_def": TINY_NETS[config],
        "train#datalist": items,
        "validate#datalist": items,
        "cache_dir": str(folder / "cache"),
        "run_dir": str(folder / "run"),
        "epoch_length": 4,
        "validation_interval": 1,
        **overrides,
    }
    configs = Path(bundle_root()) / "configs"
    file = str(configs / f"{config}.json")
    if config == "train_student":
        file = f"['{configs / 'train.json'}','{file}']"
    run = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", file]
    for key, value in options.items():
        run += [f"--{key}", value if isinstance(value, str) else repr(value)]
    return run


def shipped() -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (Path(bundle_root()) / "models").iterdir()}


def one_epoch(config: str, folder: Path, **overrides: Any) -> str:
    """Train for an epoch, which must succeed and leave the bundle's weights alone; what was printed."""
    before = shipped()
    done = subprocess.run(
        command(config, folder, **{"max_epochs": 1, "max_minutes": 5, **overrides}),
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    assert shipped() == before
    return output


def test_kill_stop_and_resume(tmp_path: Path) -> None:
    """Kill -9 in the middle, start again, Ctrl-C, start again: the iterations go on and the loss curve with them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "run" / "last.pt"

    def stopped_by(number: int) -> tuple[int, int, str]:
        """Stop a training that has saved; its exit status, the iteration it went on from or -1, and what it printed."""
        log = tmp_path / "log"
        began = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with log.open("w") as file:
            process = subprocess.Popen(
                command("train", tmp_path, checkpoint_minutes=0.01, max_minutes=5, epoch_length=400),
                cwd=tmp_path,
                stdout=file,
                stderr=file,
                env=environment,
            )
            limit = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < limit:
                if checkpoint.exists() and checkpoint.stat().st_mtime_ns > began:
                    break
                time.sleep(0.1)
            process.send_signal(number)
            status = process.wait(60)
        output = log.read_text()
        assert checkpoint.exists(), output[-3000:]
        resumed = re.findall(r"resumed from .* at iteration (\d+)", output)
        return status, int(resumed[0]) if resumed else -1, output

    def saved() -> int:
        return int(torch.load(checkpoint, weights_only=True)["trainer"]["iteration"])

    assert stopped_by(signal.SIGKILL)[:2] == (-signal.SIGKILL, -1)
    first = saved()
    assert first > 0
    status, resumed, output = stopped_by(signal.SIGINT)
    assert (status, resumed) == (130, first) and "last.pt was saved" in output and "Traceback" not in output
    second = saved()
    assert second > first and not (tmp_path / "run" / "model.pt").exists()
    refused = subprocess.run(
        command("train", tmp_path, seed=1), cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "holds a training with other settings: seed was 0, now 1. Give another --run_dir" in refused.stderr
    output = one_epoch("train", tmp_path, max_minutes=0.05)
    assert int(re.findall(r"resumed from .* at iteration (\d+)", output)[0]) == second < saved()
    ema = torch.load(checkpoint, weights_only=True)["ema"]
    assert set(torch.load(tmp_path / "run" / "model.pt", weights_only=True)) == set(ema)
    assert "wrote" in (tmp_path / "run" / "train.log").read_text()


class FakeMLflow:
    """As much of mlflow as MONAI's handler uses, for one run."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.artifacts: list[str] = []
        self.client = self
        self.entities = SimpleNamespace(
            RunStatus=SimpleNamespace(FINISHED=3, to_string=str),
            ViewType=SimpleNamespace(ACTIVE_ONLY=1),
            LifecycleStage=SimpleNamespace(ACTIVE="active"),
            Metric=lambda key, value, timestamp, step: (key, value),
            Param=lambda key, value: (key, value),
        )
        self.uri = ""

    def MlflowClient(self, tracking_uri: str) -> FakeMLflow:  # noqa: N802
        self.uri = tracking_uri
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="0", name=name, lifecycle_stage="active")

    def search_runs(self, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="1", run_name=run_name, status="1"))

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(params={}))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        for key, value in metrics:
            self.metrics.setdefault(key, []).append(value)

    def log_artifact(self, run_id: str, local_path: str) -> None:
        self.artifacts.append(str(local_path))

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_tracking_by_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI's option adds its handlers to the trainer and to the validation, and takes none away."""
    fake = FakeMLflow()
    monkeypatch.setattr("monai.handlers.mlflow_handler.mlflow", fake)
    monkeypatch.chdir(tmp_path)
    options = {
        "network_def": TINY_NETS["train_classifier"],
        "train#datalist": datalist(tmp_path)[:2],
        "validate#datalist": datalist(tmp_path)[:2],
        "cache_dir": str(tmp_path / "cache"),
        "run_dir": "run",
        "max_epochs": 1,
        "epoch_length": 2,
        "validation_interval": 1,
        "compile": False,
    }
    config = Path(bundle_root()) / "configs" / "train_classifier.json"
    workflow = ConfigWorkflow(
        str(config), workflow_type="train", run_id="training", logging_file=False, tracking="mlflow", **options
    )
    try:
        workflow.initialize()
        workflow.run()
    finally:
        set_determinism(None)
    assert len(fake.metrics["train_loss"]) == 2 and all(map(math.isfinite, fake.metrics["train_loss"]))
    assert len(fake.metrics["val_loss"]) == 1 and "val_auroc_t0" in fake.metrics
    [written] = (tmp_path / "run").glob("config_*.json")
    assert json.loads(written.read_text())["epoch_length"] == 2
    assert [Path(p).resolve() for p in fake.artifacts] == [written] and fake.uri.startswith("sqlite:///")
    # the handlers of the config itself
    assert (tmp_path / "run" / "model.pt").exists() and len(list((tmp_path / "run").glob("events.out*"))) == 2
    assert not (Path(bundle_root()) / "eval").exists()


@pytest.mark.skipif(not compilation_pays("cpu", 60), reason="there is no C++ compiler, or no Python.h")
def test_a_compiled_training_writes_the_same_kind_of_weights(tmp_path: Path) -> None:
    """Its loss falls from that of an untrained network, about 1, and the weights have the names of one that is not compiled."""
    output = one_epoch("train", tmp_path, compile=True, epoch_length=30, learning_rate=0.01)
    assert float(re.findall(r"loss=([\d.]+)", output)[-1]) < 0.9
    network = declared("network_def", **{f"network_def#{k}": v for k, v in TINY_NETS["train"].items() if k[0] != "_"})
    network.load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))


def test_classifier_is_validated_at_several_noise_levels(tmp_path: Path) -> None:
    """One that calls every slice diseased, and learns nothing: right in 7 of the 11 slices, and it ranks none above another."""
    network = ConfigParser({"network_def": TINY_NETS["train_classifier"]}).get_parsed_content("network_def")
    state = {name: torch.zeros_like(values) for name, values in network.state_dict().items()}
    state[[name for name in state if name.endswith("bias")][-1]][1] = 1.0
    torch.save(state, tmp_path / "given.pt")
    output = one_epoch("train_classifier", tmp_path, initial_weights=str(tmp_path / "given.pt"), learning_rate=0.0)
    for level in (0, 250, 500, 750):
        assert re.findall(rf"val_auroc_t{level}: ([\d.]+)", output) == ["0.5000"]
        assert re.findall(rf"val_accuracy_t{level}: ([\d.]+)", output) == ["0.6364"]
    assert float(re.findall(r"val_loss: ([\d.]+)", output)[0]) == pytest.approx(
        (7 * math.log(1 + math.exp(-1)) + 4 * math.log(1 + math.e)) / 11, abs=1e-3
    )
    assert re.search(r"waiting for data: [\d.]+ % of the time", output)
    assert (tmp_path / "run" / "model.pt").exists()
    assert list((tmp_path / "run").glob("events.out.tfevents*"))


def test_a_student_learns_from_the_diffusion_model(tmp_path: Path) -> None:
    """The teacher is the bundle's own, with one step; the student's weights are written and fit inference.json's network.

    It has an hour, from which the other networks are compiled: torch 2.13 fails to compile the gradient of this one's padding.
    """
    teacher = {
        "displayable_configs#num_inference_steps": 1,
        "num_fixed_point_iterations": 0,
        "inferer#student": None,
    }
    small = {"teacher#inferer": {"_target_": "scripts.bundle.declared", "name": "inferer", **teacher}}
    output = one_epoch("train_student", tmp_path, max_minutes=60, **small)
    assert re.search(r"lesion is what is above 0\.\d+ in the maps", output)
    assert re.search(r"val_loss: \d", output)
    student = declared("student_def", **{"student_def#features": [4] * 6})
    student.load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))
