"""Pictures of what goes wrong, for the cards, on images that may be shown.

    python benchmarks/failures.py brain_flair
    python benchmarks/failures.py brain_brats
    python benchmarks/failures.py chest_effusion --datalist FILE

Of brains, the sample's patient is shown. `datalist` is of NIH radiographs with radiologists' regions, and its section test is
read. Writes bundle/docs/failures_MODEL.jpg.
"""

from __future__ import annotations

import io
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import torch
from keeping import ROOT
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image
from stability import field
from tqdm import tqdm

from scripts import DISEASED, HEALTHY
from scripts.files import write
from scripts.images.geometry import axial
from scripts.images.restoring import LESION
from scripts.judging.lesions import components
from scripts.learning.datalists import read_datalist
from scripts.running.predictor import Prediction, Predictor

FOUND, OTHER = "#ffb000", "#4cc9f0"
BALL = 12.0
"""mm: the radius of the dark lesion."""
SERIES = ("t1", "t1gd", "t2", "flair")
WHOSE = {
    "brain": "TCGA-LGG, The Cancer Imaging Archive, CC BY 3.0",
    "chest": "ChestX-ray14, NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC",
}


@dataclass
class Scene:
    """A row of the picture: arrays ``(X, Y)`` to the left and to posterior, `other` what the marks are to be held against."""

    title: str
    image: NDArray
    healthy: NDArray
    anomaly_map: NDArray
    marked: NDArray
    other: NDArray | None = None
    aspect: float = 1.0


def turned(values: NDArray, affine: NDArray) -> NDArray:
    """A volume ``(X, Y, Z)`` to the left, posterior, superior."""
    image = MetaTensor(np.nan_to_num(values, nan=0.0).astype(np.float32)[None], affine=affine)
    return axial(image)[0].as_tensor().numpy()


def scene(
    title: str, image: NDArray, found: Prediction, z: int, other: NDArray | None = None, channel: int = 0
) -> Scene:
    """A slice of a volume ``(X, Y, Z)``, counted as `turned` has them; `other` is turned already."""
    healthy = turned(found.counterfactual[channel], found.affine)
    of_volume = [turned(image, found.affine), healthy, turned(found.anomaly_map, found.affine)]
    sizes = np.linalg.norm(found.affine[:3, :2], axis=0)
    parts = [a[..., z] for a in of_volume]
    return Scene(title, *parts, marks(found)[..., z], None if other is None else other[..., z], sizes[1] / sizes[0])


def marks(found: Prediction) -> NDArray:
    """What is marked, bool, turned."""
    return turned(found.mask == LESION, found.affine) > 0


def beside(marked: NDArray) -> NDArray:
    """What is marked outside of the largest mark."""
    numbers, sizes = components(marked)
    return marked & (numbers != 1 + np.argmax(sizes[1:]))


def fullest(mask: NDArray) -> int:
    """The slice with most of a mask ``(X, Y, Z)``."""
    return int(mask.sum(axis=(0, 1)).argmax())


def heights(values: NDArray, affine: NDArray) -> NDArray:
    """In mm, of the middles of a volume's slices, counted as `turned` has them, ``(Z,)``."""
    whole = axial(MetaTensor(values[None], affine=affine))
    x, y = ((n - 1) / 2 for n in whole.shape[1:3])
    middles = [[x, y, z, 1] for z in range(whole.shape[3])]
    return (np.asarray(whole.affine) @ np.array(middles).T)[2]


def dark(values: NDArray, affine: NDArray, marked: NDArray) -> tuple[NDArray, NDArray]:
    """A volume ``(X, Y, Z)`` with a dark ball in the hemisphere without marks, and where it is; its centre mirrors theirs."""
    centre = np.argwhere(marked).mean(axis=0)
    head = np.argwhere(values > values.mean())
    centre[0] = head[:, 0].min() + head[:, 0].max() - centre[0]
    steps = np.moveaxis(np.indices(values.shape), 0, -1) - centre
    distance = np.linalg.norm(steps * np.linalg.norm(affine[:3, :3], axis=0), axis=-1)
    part = np.clip((BALL + 1 - distance) / 2, 0, 1)
    return (values * (1 - 0.6 * part)).astype(np.float32), distance < BALL


class Study:
    """The sample's patient, whose series are run as they are or with some of them changed."""

    def __init__(self, model: str) -> None:
        self.four = model == "brain_brats"
        self.predictor = Predictor(*(["brats"] if self.four else []))
        self.paths = {name: ROOT / "bundle" / "sample" / f"TCGA_FG_6692_{name}.nii.gz" for name in SERIES}
        self.channel = SERIES.index("flair") if self.four else 0

    def run(self, **other: Path) -> Prediction:
        """With other files for some series."""
        given = self.paths | other
        return self.predictor([given[name] for name in SERIES] if self.four else given["flair"])

    def changed(self, values: NDArray, affine: NDArray) -> Prediction:
        """With another FLAIR."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "flair.nii.gz")
            nib.save(nib.Nifti1Image(values, affine), path)
            return self.run(flair=path)


def of_brain(model: str) -> Iterator[Scene]:
    """False marks, the same scan in a coil's field, a dark lesion, and a series given for another."""
    study = Study(model)
    image = nib.load(study.paths["flair"])
    values, affine = image.get_fdata(dtype=np.float32), image.affine
    first = study.run()
    largest = marks(first) & ~beside(marks(first))
    without = beside(marks(first)) & ~largest.any(axis=(0, 1))
    said = "Marked though far from the tumour"
    yield scene(said, values, first, fullest(without), None, study.channel)
    shaded = values * field(values.shape, values > values.mean() / 2, 0)
    second = study.changed(shaded, affine)
    said = f"Shading: through a coil's field, 1.5 from its weakest to its strongest, {first.lesion_ml:.0f} ml of marks become"
    z = fullest(marks(first) != marks(second))
    yield scene(f"{said} {second.lesion_ml:.0f} (blue: without it)", shaded, second, z, marks(first), study.channel)
    ball, where = dark(values, affine, first.mask == LESION)
    third = study.changed(ball, affine)
    inside = (third.mask == LESION)[where].mean()
    said = f"A dark lesion, drawn into FLAIR (blue): {100 * inside:.0f} % of it is marked"
    where = turned(where, affine) > 0
    yield scene(said, ball, third, fullest(where), where, study.channel)
    fourth = study.run(**({"t1gd": study.paths["t1"]} if study.four else {"flair": study.paths["t1"]}))
    said = " ".join(fourth.warnings) or "There is no warning."
    if study.four:
        z = fullest(marks(fourth) != marks(first))
        yield scene(f"T1 given for T1Gd (blue: T1Gd). {said}", values, fourth, z, marks(first), study.channel)
    else:
        t1 = nib.load(study.paths["t1"])
        shown = t1.get_fdata(dtype=np.float32)
        height = heights(values, affine)[fullest(largest)]
        z = int(np.abs(heights(shown, t1.affine) - height).argmin())
        yield scene(f"T1 given for FLAIR, at the tumour's height. {said}", shown, fourth, z)


def region(item: dict) -> NDArray:
    """What a radiologist drew in a picture, bool ``(X, Y)``."""
    return np.asarray(Image.open(item["mask"])).T > 0


def probability(predictor: Predictor, image: str) -> float:
    """p(diseased) of a picture, which takes one call."""
    x = predictor.preprocessing({"image": image})["image"].as_tensor().movedim(-1, 0)
    with torch.no_grad():
        return float(predictor.inferer.probability(x.to(predictor.device))[0])


def of_chest(datalist: str) -> Iterator[Scene]:
    """Of the test: the effusion with a region that p misses most, the healthy image with the highest p, and marks elsewhere."""
    predictor = Predictor("chest")
    items = [item for item in read_datalist(datalist, "test") if "mask" in item or item["label"] == HEALTHY]
    p = [probability(predictor, item["image"]) for item in tqdm(items, unit="image")]
    by_p = [n for n in np.argsort(p) if items[n]["label"] == DISEASED]
    alarm = max((n for n in range(len(items)) if items[n]["label"] == HEALTHY), key=lambda n: p[n])
    seen = {n: predictor(items[n]["image"]) for n in (*by_p, alarm)}

    def overlap(n: int) -> float:
        drawn, marked = region(items[n]), seen[n].mask[..., 0] == LESION
        return float((drawn & marked).sum() / max(marked.sum(), 1))

    elsewhere = min((n for n in by_p if p[n] > 0.5), key=overlap)
    for title, n in (
        ("Missed: the effusion with the lowest p(effusion)", by_p[0]),
        ("False alarm: the image without finding with the highest p(effusion)", alarm),
        ("In the wrong place: the least of what is marked lies in the radiologist's region", elsewhere),
    ):
        item, found = items[n], seen[n]
        view = item.get("groups", {}).get("view", "unknown")
        drawn = region(item) if "mask" in item else None
        picture = np.asarray(Image.open(item["image"]), np.float32).T
        yield Scene(
            f"{title}; p {p[n]:.2f}, view {view}",
            picture,
            found.counterfactual[0, ..., 0],
            np.nan_to_num(found.anomaly_map[..., 0]),
            found.mask[..., 0] == LESION,
            drawn,
        )


def draw(scenes: list[Scene], other: str, whose: str, path: Path) -> None:
    """A row a scene: the image, its healthy counterpart, the map, and what is marked."""
    height = 2.2 * scenes[0].image.shape[1] / scenes[0].image.shape[0] * scenes[0].aspect
    figure = Figure((9.2, (height + 0.5) * len(scenes) + 0.6), facecolor="black", layout="constrained")
    rows = figure.subfigures(len(scenes), 1)
    for of_row, shown in zip(rows, scenes, strict=True):
        of_row.set_facecolor("black")
        of_row.suptitle(textwrap.fill(shown.title, 110), color="white", fontsize=9)
        axes = of_row.subplots(1, 4)
        low, high = np.percentile(shown.image, [1, 99.5])
        for ax, base in zip(axes, (shown.image, shown.healthy, shown.image, shown.image), strict=True):
            ax.imshow(base.T, cmap="gray", vmin=low, vmax=high, aspect=shown.aspect)
            ax.axis("off")
        alpha = np.clip(2 * shown.anomaly_map / max(shown.anomaly_map.max(), 1e-6), 0, 0.85)
        axes[2].imshow(shown.anomaly_map.T, cmap="inferno", alpha=alpha.T, aspect=shown.aspect)
        for mask, color, style in ((shown.marked, FOUND, "solid"), (shown.other, OTHER, "dashed")):
            if mask is not None and mask.any():
                axes[3].contour(mask.T, [0.5], colors=color, linestyles=style, linewidths=1.2)
    lines = [Line2D([], [], color=FOUND, label="marked"), Line2D([], [], color=OTHER, linestyle="dashed", label=other)]
    figure.legend(handles=lines, loc="outside lower left", ncols=2, fontsize=8, labelcolor="white", frameon=False)
    figure.text(0.99, 0.005, f"{whose}. Not for clinical use", color="#aaaaaa", fontsize=7, ha="right")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="jpg", facecolor="black", pil_kwargs={"quality": 85})
    write(path, buffer.getvalue())


def main(model: str, datalist: str | None = None, output: str | None = None) -> None:
    """See the module."""
    path = Path(output or ROOT / "bundle" / "docs" / f"failures_{model}.jpg")
    if model == "chest_effusion":
        draw(list(of_chest(str(datalist))), "radiologist's region", WHOSE["chest"], path)
    else:
        draw(list(of_brain(model)), "what the title calls blue", WHOSE["brain"], path)


if __name__ == "__main__":
    fire.Fire(main)
