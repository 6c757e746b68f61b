"""Training with MONAI's own command: batches, balance, checkpoints, resumption after a kill, EMA weights."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.bundle import ConfigParser
from monai.data import MetaTensor, get_track_meta
from monai.networks.schedulers import DDIMScheduler
from monai.transforms import Compose, RandShiftIntensityd
from monai.utils import set_determinism

from gaussians import NoisedClassifier, exact
from scripts.bundle import bundle_root, compilation_pays, declared, for_training
from scripts.data import SliceDataset, brain_mr, random_sampler
from scripts.student import PseudoLabels, filled
from scripts.training import (
    AtNoiseLevel,
    AutocastDiffusionInferer,
    AutocastInferer,
    ClipGradients,
    MinutesLimit,
    NoisedPrepareBatch,
    ResumableCheckpoint,
)
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
    assert isinstance(dataset._slices, np.memmap)
    assert dataset[0]["image"].shape == (1, 72, 88) and dataset[0]["image"].dtype == torch.float32
    assert float(dataset[0]["image"].min()) == -1.0
    by_subject = {
        s: [x for x, who in zip(dataset.labels, dataset.subjects, strict=True) if who == s] for s in dataset.subjects
    }
    # "plain" rises and "flipped" falls through its file; assessed are the middle slices 1 to 4
    assert by_subject["plain"] == [1, 0, 1, 0]
    assert by_subject["flipped"] == [0, 1, 0, 1]
    assert set(by_subject["oblique"]) == {1}
    written = sorted((tmp_path / "cache").iterdir())
    again = SliceDataset(datalist(tmp_path), declared("preprocessing"), str(tmp_path / "cache"), 0.5)
    assert sorted((tmp_path / "cache").iterdir()) == written and len(written) == 2
    assert torch.equal(again[3]["image"], dataset[3]["image"])
    other = SliceDataset(datalist(tmp_path), declared("preprocessing", pixel_size=3.0), str(tmp_path / "cache"), 0.5)
    assert len(list((tmp_path / "cache").iterdir())) == 4 and len(other)


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


def test_brain_mr_needs_its_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="slices.csv: not found; give the folder"):
        brain_mr(str(tmp_path), "train")
    (tmp_path / "slices.csv").write_text("patient,z,split,has_tumour,mid_slice\nA,0,train,1,1\nA,1,train,0,0\n")
    [item] = brain_mr(str(tmp_path), "train")
    assert item["label"] == [1, -1] and item["spacing"] == [1.8, 1.8, 72.5] and item["subject"] == "A"
    with pytest.raises(ValueError, match="no patient is in split 'val'"):
        brain_mr(str(tmp_path), "val")


def test_brain_mr_with_its_own_masks_leaves_out_those_not_trusted(tmp_path: Path) -> None:
    header = "patient,z,split,has_tumour,mid_slice,brain_mask_trusted\n"
    (tmp_path / "slices.csv").write_text(header + "A,0,train,1,1,1\nB,0,train,0,1,0\n")
    assert [i["subject"] for i in brain_mr(str(tmp_path), "train")] == ["A", "B"]
    [item] = brain_mr(str(tmp_path), "train", brain_masks=True)
    assert (item["subject"], item["brain"]) == ("A", str(tmp_path / "volumes" / "A" / "brain.nii.gz"))


class FakeSlices:
    """Eight slices of 4 x 4, every second one diseased: brain at 0, and in the diseased a bright square, some brighter.

    Patient B's squares are faint, of an eighth of the brightness.
    """

    path = Path("fake.npy")
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


def healed(x: torch.Tensor, network: Any) -> dict[str, torch.Tensor]:
    """A perfect teacher: the brain is 0 everywhere."""
    return {"counterfactual": torch.where(x > -1, 0.0, x), "probability": torch.ones(len(x))}


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
    [path] = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: 32 * 3 + 5])  # killed within the fourth map, so the second batch is made again
    seen: list[int] = []
    monkeypatch.setitem(globals(), "healed", lambda x, n, heal=healed: (seen.append(len(x)), heal(x, n))[1])
    torch.manual_seed(0)
    assert pseudo_labels(tmp_path, FakeSlices()).threshold == whole.threshold
    assert seen == [2] and path.read_bytes() == content


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
    ResumableCheckpoint(str(tmp_path), network, ema.ema_model, optimizer, str(tmp_path / "model.pt")).attach(engine)
    start = network.weight.detach().clone()
    engine.run(range(3), max_epochs=1)
    # w_k = w_0 - 0.1 k, and the EMA follows by a tenth of the way each time
    lag = 0.0
    for k in (1, 2, 3):
        lag = 0.9 * lag + 0.1 * 0.1 * k
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.allclose(written["weight"], start - lag, atol=1e-6)
    resumed = Engine(step)
    ResumableCheckpoint(str(tmp_path), network, ema.ema_model, optimizer, str(tmp_path / "model.pt")).attach(resumed)
    iterations: list[int] = []
    resumed.add_event_handler(Events.ITERATION_COMPLETED, lambda e: iterations.append(e.state.iteration))
    resumed.run(range(3), max_epochs=2, epoch_length=3)
    assert iterations == [4, 5, 6]


def command(config: str, folder: Path, **overrides: Any) -> list[str]:
    """MONAI's command, as a user types it from any directory, with a small network and data."""
    items = datalist(folder)
    options = {
        "network_def": TINY_NETS[config],
        "train#datalist": items,
        "validate#datalist": items,
        "cache_dir": str(folder / "cache"),
        "ckpt_dir": str(folder / "ckpt"),
        "final_path": str(folder / "final.pt"),
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


def one_epoch(config: str, folder: Path, **overrides: Any) -> str:
    """Train for an epoch, which must succeed; what was printed."""
    done = subprocess.run(
        command(config, folder, **{"max_epochs": 1, "max_minutes": 5, **overrides}),
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    return output


def test_kill_and_resume(tmp_path: Path) -> None:
    """Kill -9 in the middle, start again: the iterations go on and the loss curve with them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "first.log"
    with log.open("w") as file:
        first = subprocess.Popen(
            command("train", tmp_path, checkpoint_minutes=0.01, max_minutes=5),
            cwd=tmp_path,
            stdout=file,
            stderr=file,
            env=environment,
        )
        checkpoint = tmp_path / "ckpt" / "last.pt"
        limit = time.monotonic() + 120
        while not checkpoint.exists() and first.poll() is None and time.monotonic() < limit:
            time.sleep(0.2)
        time.sleep(2)
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert checkpoint.exists(), log.read_text()[-3000:]
    assert not (tmp_path / "final.pt").exists()
    saved = torch.load(checkpoint, weights_only=True)
    iteration = saved["trainer"]["iteration"]
    assert iteration > 0
    second = subprocess.run(
        command("train", tmp_path, max_minutes=0.05), cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    output = second.stdout + second.stderr
    assert second.returncode == 0, output[-3000:]
    assert int(re.findall(r"resumed from .* at iteration (\d+)", output)[0]) == iteration
    after = torch.load(checkpoint, weights_only=True)["trainer"]["iteration"]
    assert after > iteration
    assert set(torch.load(tmp_path / "final.pt", weights_only=True)) == set(saved["ema"])


@pytest.mark.skipif(not compilation_pays("cpu", 60), reason="there is no C++ compiler, or no Python.h")
def test_a_compiled_training_writes_the_same_kind_of_weights(tmp_path: Path) -> None:
    """Its loss falls from that of an untrained network, about 1, and the weights have the names of one that is not compiled."""
    output = one_epoch("train", tmp_path, compile=True, epoch_length=30, learning_rate=0.01)
    assert float(re.findall(r"loss=([\d.]+)", output)[-1]) < 0.9
    network = declared("network_def", **{f"network_def#{k}": v for k, v in TINY_NETS["train"].items() if k[0] != "_"})
    network.load_state_dict(torch.load(tmp_path / "final.pt", weights_only=True))


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
    assert (tmp_path / "final.pt").exists()
    assert list((tmp_path / "ckpt").glob("events.out.tfevents*"))


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
    student.load_state_dict(torch.load(tmp_path / "final.pt", weights_only=True))
