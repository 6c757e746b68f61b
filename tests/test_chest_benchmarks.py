"""What is said of radiographs' counterparts, and the masks that teach the lungs' network, with known answers."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image
from skimage.draw import ellipse

from scripts.bundle import declared
from scripts.judging.sums import dice

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import chest
import lungs
import tables
from algorithms import Algorithms

ROOT = tables.ROOT


def phantom(small: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A body with two dark lungs, ``(W, H)`` in [-1, 1], and the lungs; `small` is how high the second is."""
    x, marked = np.full((96, 96), -1.0, np.float32), np.zeros((96, 96), bool)
    x[10:86, 8:] = 0.7
    for middle, height in ((30, 26), (66, round(26 * small))):
        rows, columns = ellipse(middle, 42, 12, height, shape=x.shape)
        marked[rows, columns] = True
    x[marked] = -0.5
    return x + 0.03 * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32), marked


def test_dark_regions_on_both_sides_are_lungs() -> None:
    x, marked = phantom()
    found = lungs.lungs_of(x)
    assert found is not None and dice(found, marked) > 0.9
    for one_sided in (phantom(0.4)[0], np.where(np.arange(96)[:, None] < 48, 0.7, x)):
        assert lungs.lungs_of(one_sided) is None


def test_fluid_hides_the_lower_lung_and_nothing_else() -> None:
    x, marked = (torch.from_numpy(a)[None] for a in phantom())
    changes = [lungs.with_fluid(x, marked.float(), torch.Generator().manual_seed(n))[0] - x[0] for n in range(20)]
    for change in changes:
        assert change.abs()[:, :14].max() < 0.05  # above the lungs
        assert max(change.abs()[:4].max(), change.abs()[92:].max()) < 0.05  # beside the body
    below = torch.stack(changes)[:, marked[0] & (torch.arange(96) > 60)].mean(dim=1)
    assert below.max() > 0.6 and below.min() == 0  # whole bases, and none


def test_the_chest_models_roi_holds_the_lungs_and_what_lies_below() -> None:
    """By the weights that the bundle has; half of the picture at most."""
    x, marked = phantom()
    image = MetaTensor(torch.from_numpy(x)[None, ..., None], affine=torch.eye(4), meta={"filename_or_obj": "x.png"})
    roi = declared("roi", "chest", device="cpu")({"image": image})["roi"][0, ..., 0].numpy() > 0
    assert roi[marked].mean() > 0.95 and roi.mean() < 0.6
    assert roi[30, 70] and not roi[48, 95] and not roi[:6].any()


def test_what_is_said_of_counterparts() -> None:
    """Of two diseased images the judge called one diseased, and healthy after; a healthy one is changed a third as much."""
    x, roi = torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    roi[:, :, :2] = True
    healthy = x.clone()
    healthy[:2, :, :2], healthy[2, :, :2], healthy[0, :, 3] = 0.3, 0.1, 0.2
    labels = torch.tensor([1, 1, 0])
    before, after = torch.tensor([0.9, 0.2, 0.6]), torch.tensor([0.1, 0.9, 0.9])
    found = chest.healing(x, healthy, roi, labels, before, after)
    assert (found["found"], found["healed"]) == (0.5, 1.0)
    assert found["outside"] == pytest.approx(0.2 * 4 / 24)
    assert found["diseased"] == pytest.approx((0.15 + 0.05 + 0.15) / 2) and found["healthy"] == pytest.approx(0.05)
    assert found["ratio"] == pytest.approx(found["healthy"] / found["diseased"])
    whole = chest.healing(x, healthy, torch.ones_like(roi), labels, torch.zeros(3), after)
    assert "outside" not in whole and "healed" not in whole


def test_images_with_regions_come_first() -> None:
    items = [{"image": str(n), "label": n % 2, **({"mask": "m"} if n in (5, 9) else {})} for n in range(12)]
    first = chest.chosen(items, 3, 0)
    assert [item["label"] for item in first] == [1, 1, 1, 0, 0, 0]
    assert {item["image"] for item in first[:2]} == {"5", "9"} and "mask" not in first[2]


def test_maps_are_gated_by_the_p_that_the_model_gives() -> None:
    """Read at two noise levels, as the inferer does."""
    x = torch.from_numpy(np.stack([phantom(small)[0] for small in (1.0, 0.6)]))[:, None]
    inferer, network = (declared(name, "chest", device="cpu") for name in ("inferer", "network"))
    inferer.precision = "float32"
    inferer.slices = lambda x, inside, network: {"probability": inferer.probability(x), "counterfactual": x}
    given = inferer(x[..., None], network)["probability"][:, 0]
    found = Algorithms("chest", device="cpu").probability(x, [1, 1])
    torch.testing.assert_close(found, given.detach())
    assert inferer.classified_at == [0, 250]


def test_the_chests_records_are_written_under_the_names_that_they_are_read_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a judge and a VAE that never learned, and counterparts that are a tenth darker."""
    splits: dict[str, list[dict[str, object]]] = {}
    for n in range(12):
        x, marked = phantom(1 - 0.02 * n)
        for name, array in (("image", 127.5 * (x.clip(-1, 1) + 1)), ("mask", 255 * marked)):
            Image.fromarray(array.T.astype(np.uint8)).save(tmp_path / f"{name}_{n}.png")
        item = {"image": f"image_{n}.png", "label": n % 2, "subject": str(n)}
        splits.setdefault(("training", "validation", "test")[n // 4], []).append(item)
        if n % 2:
            item["mask"] = f"mask_{n}.png"
    (tmp_path / "datalist.json").write_text(json.dumps(splits))
    monkeypatch.setattr(chest, "judge_of", lambda *args: chest.judge_def().eval())
    monkeypatch.setattr(chest, "reader_of", lambda *args: lambda x, inside: 0.9 * x)
    monkeypatch.setattr(Algorithms, "run", lambda self, row, x, *args: {"healthy": 0.9 * x})
    out = tmp_path / "out"
    chest.main(str(tmp_path / "datalist.json"), slow=0, images=4, output=str(out), cache_dir=str(tmp_path / "cache"))
    documents = "".join((ROOT / name).read_text("utf-8") for name in tables.DOCUMENTS)
    read = set(re.findall(r"<!-- table: chest_effusion/((?:maps|counterparts)\.csv)", documents))
    assert read == {"maps.csv", "counterparts.csv"}
    assert {path.name for path in out.iterdir()} == read | {"chest.json", "counterparts.png"}
    record = json.loads((out / "chest.json").read_text())
    assert record["seed"] == 0 and record["images"] == 4
    for name, known in (("maps", "thresholds"), ("counterparts", "counterparts")):
        with (out / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            assert [next(iter(row.values())) for row in csv.DictReader(file)] == list(record[known])
