"""Maps and truth of a volume's slices on the input's own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from .. import HEALTHY
from ..images.geometry import axial, axial_index, slice_numbers, to_grid
from ..images.normalization import BACKGROUND
from ..images.registering import shown_channel
from ..learning.datalists import paths_of
from ..method.slices import assessed_slices
from .baselines import Baseline
from .cases import Array, SliceCase
from .lesions import cut
from .ranking import quotient
from .readings import Maps
from .truth import slice_labels, truth_of


def cases_of(
    item: Mapping[str, Any],
    volume: Mapping[Any, Any],
    maps: Maps,
    scores: Maps,
    baselines: Sequence[Baseline] = (),
    healthy: torch.Tensor | None = None,
    assessed: torch.Tensor | None = None,
    mask_key: str = "foreground",
) -> tuple[list[SliceCase], dict[int, int]]:
    """Every labelled slice of a volume, with its maps and scores and those of the baselines.

    Beside them, the labels of slices, by their numbers, that are left out, as no foreground was found in them.

    Maps are compared on the input's own grid, in the order left, posterior, superior.

    Args:
        item: of a datalist; without a subject, its first file is one.
        volume: what the preprocessing gave for it.
        maps: for each method ``(D, 1, H, W)`` on the grid of the preprocessed image.
        scores: for each method or classifier ``(D,)``.
        baselines: their score of a slice is the map's mean over its foreground.
        healthy: the counterfactual ``(C, H, W, D)``, for display, of which the channel is kept that `shown_channel` names.
        assessed: bool ``(D,)``, the slices that count where an item has one label; by default all with foreground.
        mask_key: where maps and scores are read, see `images.mapping.AnomalyMapd`; the foreground of the cases.
    """
    image: MetaTensor = volume["image"]
    parts = [volume[mask_key].as_tensor(), volume["foreground"].as_tensor(), *(m.movedim(0, -1) for m in maps.values())]
    original: MetaTensor = volume["input_image"]
    shown = shown_channel(original)
    if healthy is not None:
        parts.append((image.as_tensor() - healthy)[shown : shown + 1])
    affine = torch.as_tensor(original.affine)
    grid = to_grid(torch.cat(parts), image.affine, affine, original.shape[1:])
    on_input = axial(MetaTensor(grid, affine=affine)).as_tensor().numpy()
    inside = on_input[0] >= 0.5
    x = _normalised(image, original, on_input[1] >= 0.5, volume.get("bias_field"))

    row = {n: i for i, n in enumerate(slice_numbers(image))}
    if assessed is None:
        assessed = assessed_slices(volume["foreground"].as_tensor(), 0)
    truth = truth_of(item, original)
    labels = slice_labels(item, original, truth, [n for n, i in row.items() if bool(assessed[i])])
    on_grid = {name: on_input[2 + i] for i, name in enumerate(maps)}
    above: dict[str, Array] = {baseline.name: baseline(x, inside) for baseline in baselines}
    area = inside.sum(axis=(0, 1))
    means = {name: quotient((a * inside).sum(axis=(0, 1), dtype=float), area) for name, a in above.items()}
    subject = str(item.get("subject", paths_of(item)[0]))
    voxel_ml = float(affine[:3, :3].double().det().abs()) / 1000
    cases, left = [], {}
    for n, label in enumerate(labels):
        z = axial_index(n, affine, len(labels))
        if label < 0 or not inside[..., z].any() or n not in row:
            if label >= 0:
                left[n] = label
            continue
        lesion = np.zeros_like(inside[..., z]) if label == HEALTHY else None
        if truth.lesion is not None:
            lesion = truth.lesion[..., z]
        case = SliceCase(subject, n, x[shown][..., z], inside[..., z], lesion, label, volume=volume_name(item))
        case.maps = {name: m[..., z].astype(np.float32) for name, m in (on_grid | above).items()}
        case.scores = {name: float(s[row[n]]) for name, s in scores.items()}
        case.scores |= {name: float(s[z]) for name, s in means.items()}
        if healthy is not None:
            case.counterfactual = case.image - on_input[-1][..., z]
        case.boxes = truth.boxes
        case.parts = None if truth.parts is None else truth.parts[..., z]
        cases.append(case)
    judged = [axial_index(case.slice, affine, len(labels)) for case in cases]
    if len(labels) > 1 and not (truth.lesion is not None and cut(truth.lesion, judged)):
        for case in cases:
            case.voxel_ml = voxel_ml
    return cases, left


def volume_name(item: Mapping[str, Any]) -> str:
    """The paths of all channels of an item: several volumes of a patient may share some."""
    return ", ".join(paths_of(item))


def _normalised(image: MetaTensor, original: MetaTensor, inside: Array, field: MetaTensor | None) -> Array:
    """The input ``(C, H, W, D)`` at its own resolution on the networks' intensity scale; the lowest value outside.

    What the preprocessing did to the intensities is done to it too: the level of air is taken off, the coil's field is taken
    out, and what is not finite is no signal. Else baselines would see less than the networks do.

    Args:
        image: preprocessed.
        original: the input ``(C, X, Y, Z)``.
        inside: bool ``(H, W, D)``.
        field: see `images.bias_field.CorrectFieldd`.
    """
    scale = torch.as_tensor(image.meta["intensity_scale"])
    # without an offset, no signal is -1
    offset = torch.as_tensor(image.meta.get("intensity_offset", scale))
    level = torch.as_tensor(image.meta.get("intensity_level", torch.zeros_like(scale)))
    offset, level, scale = (values.view(-1, 1, 1, 1) for values in (offset, level, scale))
    signal = original - level
    if field is not None and bool(((field != 1) & (field > 0)).any()):
        known = (field.as_tensor()[:1] > 0).float()  # 0 is the padding of a crop
        affine = torch.as_tensor(original.affine)
        on_input = to_grid(torch.cat([field.as_tensor() * known, known]), field.affine, affine, original.shape[1:])
        # both fade at the edges, beyond which nothing is known of the field
        signal = signal / torch.where(on_input[-1:] > 0, on_input[:-1] / on_input[-1:], 1)
    x: Array = ((axial(signal).as_tensor() - offset) / scale).nan_to_num(nan=BACKGROUND).clamp(-1, 1).numpy()
    x[:, ~inside] = BACKGROUND
    return x
