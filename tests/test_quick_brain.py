"""The brain by a small network, and when HD-BET takes over."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.bundle import parsed
from scripts.images.brain import ExtractBraind
from scripts.images.heads import boxed, padded, unboxed
from scripts.images.quick_brain import ExtractBrainQuicklyd, solid
from test_evaluation import write_patients

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import quick_brain


def ball(radius: float = 65.0, spacing: float = 3.0, shift: float = 0.0) -> tuple[MetaTensor, torch.Tensor]:
    """A bright ball in the middle of air, of 1150 ml as it is, and where it is."""
    n = round(210 / spacing)
    axis = torch.arange(n) * spacing - 105
    x, y, z = torch.meshgrid(axis - shift, axis, axis, indexing="ij")
    inside = (x**2 + y**2 + z**2 < radius**2)[None]
    image = MetaTensor(100.0 * inside, affine=torch.diag(torch.tensor([spacing] * 3 + [1.0], dtype=torch.float64)))
    image.meta["filename_or_obj"] = "ball.nii.gz"
    return image, inside


class Bright(torch.nn.Module):
    """Marks what is above its mean; with `half`, only in the first half of the first axis."""

    def __init__(self, half: bool = False) -> None:
        super().__init__()
        self.half, self.scale = half, torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.scale * (x - 0.2)
        if self.half:
            logits[:, :, x.shape[2] // 2 :] = -20
        return logits


def extracted(
    monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module, image: MetaTensor, **options: Any
) -> tuple[torch.Tensor, int]:
    """The mask ``(1, X, Y, Z)``, and how often HD-BET, which marks all, was called."""
    calls = []

    def all_of_it(self: ExtractBraind, image: MetaTensor) -> torch.Tensor:
        calls.append(1)
        return torch.ones(image.shape, dtype=torch.bool)

    monkeypatch.setattr(ExtractBraind, "_segment", all_of_it)
    monkeypatch.setattr(ExtractBraind, "_without_air", lambda self, image, mask: mask)
    transform = ExtractBrainQuicklyd("image", network, device="cpu", precision="float32", **options)
    return transform({"image": image})["foreground"].as_tensor() > 0, len(calls)


def test_a_head_goes_to_its_box_and_back() -> None:
    """The box is that of what is bright; mean 0, deviation 1; what is above one half comes back on the grid."""
    image, inside = ball()
    x, box = boxed(image, 2.4, "cpu")
    assert abs(float(x.mean())) < 1e-4 and float(x.std()) == pytest.approx(1, abs=1e-4)
    assert [s.stop - s.start for s in box[1:]] == [49] * 3  # 43 voxels of the ball and a margin of 3
    assert x.shape == (1, 1, 61, 61, 61) and padded(x, 16).shape[2:] == (64, 64, 64)
    back = unboxed((x > 0).float(), box, image)
    assert back.shape == image.shape and quick_brain.dice(back, inside) > 0.97


def test_the_network_finds_the_brain_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    image, inside = ball(shift=9.0)
    mask, calls = extracted(monkeypatch, Bright(), image)
    assert calls == 0 and quick_brain.dice(mask, inside) > 0.97


@pytest.mark.parametrize(
    ("network", "radius"),
    [(Bright(half=True), 65.0), (Bright(), 40.0), (Bright(), 95.0)],
    ids=["uneven", "small", "large"],
)
def test_hd_bet_takes_over(monkeypatch: pytest.MonkeyPatch, network: torch.nn.Module, radius: float) -> None:
    """Where the mirror image is marked in another way, or of 270 ml, or of 3600 ml."""
    mask, calls = extracted(monkeypatch, network, ball(radius)[0])
    assert calls == 1 and bool(mask.all())


def test_masks_of_other_weights_are_not_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = ball()
    other = Bright()
    other.scale.data += 1
    for number, network in enumerate((Bright(), Bright(), other), 1):
        extracted(monkeypatch, network, image, cache_dir=str(tmp_path))
        assert len(list(tmp_path.glob("brain-*.npz"))) == max(1, number - 1)


def test_a_brain_is_one_part_without_holes() -> None:
    mask = np.zeros((5, 5, 7), bool)
    mask[:4, :4, :4] = True
    mask[1, 1, 1] = False
    mask[4, 4, 6] = True
    expected = np.zeros_like(mask)
    expected[:4, :4, :4] = True
    np.testing.assert_array_equal(solid(mask), expected)


def test_the_declared_network_is_small_and_fits() -> None:
    network = parsed("quick_brain").get_parsed_content("brain_def")
    assert 100_000 < sum(p.numel() for p in network.parameters()) < 500_000
    assert network(torch.zeros(1, 1, 32, 48, 32)).shape == (1, 1, 32, 48, 32)


def test_it_is_taught_and_judged(tmp_path: Path) -> None:
    """A network that marks what is bright, beside a mask that is the ball; the lesion is a part of it."""
    image, inside = ball()
    volumes = [{"image": image, "foreground": MetaTensor(inside.float(), affine=image.affine), "mask": None}]
    data = quick_brain.Heads(volumes, quick_brain.augmentation(0))
    item = data[0]
    assert item["image"].shape == item["label"].shape == (1, *quick_brain.SIZE)
    assert 0.5 < 2.4**3 * float(item["label"].sum()) / 1000 / 1150 < 1.7  # within what it is stretched by
    quick = ExtractBrainQuicklyd("image", Bright(), device="cpu", precision="float32")
    hd_bet = ExtractBraind("image", device="cpu")
    hd_bet._segment = lambda image: inside  # type: ignore[method-assign]
    found = quick_brain.judged(volumes, quick, hd_bet)
    assert found["volumes"] == 1 and found["HD-BET took over"] == 0 and found["mean Dice"] > 0.97


def test_the_command_learns_from_masks_and_writes_weights_that_the_overlay_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_patients(tmp_path / "data")
    path = tmp_path / "data" / "datalist.json"
    items = json.loads(path.read_text())
    path.write_text(json.dumps({"training": items["validation"], "test": items["test"]}))
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)
    monkeypatch.setattr(quick_brain, "SIZE", (32, 32, 32))
    weights, record = tmp_path / "brain.pt", tmp_path / "record.json"
    options = {"steps": 2, "batch_size": 1, "workers": 0, "output": str(weights), "record_path": str(record)}
    quick_brain.main([str(path)], cache_dir=str(tmp_path / "cache"), **options)
    written = json.loads(record.read_text())
    assert written["volumes learned from"] == 2 and written["datalist"]["volumes"] == 2
    load = {"brain#path": str(weights), "device": "cpu"}
    foreground = parsed("quick_brain", **load).get_parsed_content("foreground")
    assert isinstance(foreground, ExtractBrainQuicklyd) and len(foreground.made_by) == 64
