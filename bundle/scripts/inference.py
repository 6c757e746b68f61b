"""Running the bundle on one's own files: what to read, what to write, and what to say about it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import IterableDataset, MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import Compose
from tqdm import tqdm

from .bundle import weights_digest
from .loading import affine_like, load_nifti
from .overview import draw_overview
from .postprocessing import LESION, NOT_ASSESSED

SUFFIXES = (".nii.gz", ".nii")
OUTPUTS = ("anomaly_map", "counterfactual", "pred")


def _stem(path: str) -> str:
    for suffix in SUFFIXES:
        if path.endswith(suffix):
            return path[: -len(suffix)]
    return path


def find_inputs(path: str) -> list[dict[str, Any]]:
    """The volumes to process, each with a ``name`` of its own for its output folder.

    Args:
        path: a NIfTI file, a folder (searched for NIfTI files, deeply), or a JSON datalist: a list of items with ``image``
            (a path, or one a channel) and optionally ``mask``, ``brain`` and ``spacing``; its paths are relative to it.

    Raises:
        ValueError: nothing there, or the datalist is malformed.
    """
    source = Path(path)
    if source.is_dir():
        files = sorted(p for p in source.rglob("*") if p.name.endswith(SUFFIXES))
        if not files:
            raise ValueError(f"{path}: no NIfTI file (.nii, .nii.gz) in this folder.")
        items = [{"image": str(p), "name": _stem(p.relative_to(source).as_posix())} for p in files]
    elif source.suffix == ".json":
        items = _read_datalist(source)
    else:
        items = [{"image": path, "name": _stem(source.name)}]
    taken: set[str] = set()
    for item in items:
        # one folder a volume, never outside the output folder
        name = base = "-".join(part for part in Path(item["name"]).parts if part not in ("/", "..", ".")) or "volume"
        n = 2
        while name in taken:
            name, n = f"{base}-{n}", n + 1
        taken.add(name)
        item["name"] = name
    return items


def _read_datalist(source: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(source.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: can't be read as a JSON datalist ({error}).") from error
    if not isinstance(content, list) or not all(isinstance(i, dict) and "image" in i for i in content) or not content:
        raise ValueError(f'{source}: a datalist is a list of items such as {{"image": "flair.nii.gz"}}.')
    items = []
    for entry in content:
        item = {k: v for k, v in entry.items() if k in ("image", "mask", "brain", "spacing")}
        for key in ("image", "mask", "brain"):
            if isinstance(item.get(key), list):
                item[key] = [str(source.parent / p) for p in item[key]]
            elif key in item:
                item[key] = str(source.parent / item[key])
        first = entry["image"][0] if isinstance(entry["image"], list) else entry["image"]
        item["name"] = str(entry.get("subject", _stem(str(first))))
        items.append(item)
    return items


class VolumeDataset(IterableDataset):
    """Preprocessed volumes, one after the other; one that fails is reported and the next one follows.

    Args:
        items: see `find_inputs`.
        preprocessing: dictionary transforms.
        report: told of every failure.
    """

    def __init__(self, items: Sequence[dict[str, Any]], preprocessing: Compose, report: Report) -> None:
        super().__init__(items)
        self.items = items
        self.preprocessing = preprocessing
        self.report = report

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for item in tqdm(self.items, desc="volumes", unit="volume"):
            start = time.perf_counter()
            try:
                # a mask and the name are the report's business
                data = self.preprocessing({k: v for k, v in item.items() if k not in ("mask", "name")})
            except Exception as error:
                self.report.failed(item, error)
                continue
            # sentences don't go through the loader, which makes batches of what it is given
            self.report.begin(item, time.perf_counter() - start, data.get("warnings", []))
            yield {k: data[k] for k in ("image", "brain", "input_image", "bias_field") if k in data}


class Report:
    """Writes each volume's results whole or not at all, and a summary that grows with every volume.

    In `output_dir`: a folder a volume with ``anomaly_map.nii.gz``, ``counterfactual.nii.gz``, ``pred.nii.gz`` and
    ``overview.png``; ``summary.json`` with scores, settings, weights, times and failures; ``summary.csv`` with a line a slice
    and a volume. As a handler it follows an evaluator whose postprocessing ends with `RestoreGridd`.

    Args:
        output_dir: made if it is missing.
        settings, networks: what the results depend on, for the summary; a network that is None has no part in them.
    """

    def __init__(
        self, output_dir: str, settings: Mapping[str, Any], networks: Mapping[str, torch.nn.Module | None]
    ) -> None:
        self.output_dir = Path(output_dir)
        self.settings = dict(settings)
        self.weights = {name: weights_digest(network) for name, network in networks.items() if network is not None}
        self.volumes: list[dict[str, Any]] = []
        self._current: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """To an evaluator with batches of one volume."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._tick)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._networks_done)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def begin(self, item: dict[str, Any], seconds: float, warnings: Sequence[str] = ()) -> None:
        """The next volume was preprocessed in so many seconds, with these warnings."""
        self._current = {"item": item, "seconds": {"preprocessing": seconds}, "warnings": list(warnings)}
        for warning in warnings:
            tqdm.write(f"WARNING {item['name']}: {warning}")

    def failed(self, item: Mapping[str, Any], error: Exception) -> None:
        """A volume could not be processed."""
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
        reason = str(cause) or type(cause).__name__
        self.volumes.append({"name": item["name"], "image": item["image"], "status": "failed", "error": reason})
        tqdm.write(f"FAILED {item['name']}: {reason}")
        self._save_summary()

    def _tick(self, engine: Engine) -> None:
        self._start = time.perf_counter()

    def _networks_done(self, engine: Engine) -> None:
        self._current["seconds"]["networks"] = time.perf_counter() - self._start
        self._start = time.perf_counter()

    def _write(self, engine: Engine) -> None:
        item, seconds = self._current["item"], self._current["seconds"]
        result = {**engine.state.batch[0], **engine.state.output[0], "warnings": self._current["warnings"]}
        seconds["postprocessing"] = time.perf_counter() - self._start
        start = time.perf_counter()
        try:
            folder = self._write_volume(item, result)
        except Exception as error:
            self.failed(item, error)
            return
        seconds["writing"] = time.perf_counter() - start
        assessed = [s for s in result["slices"] if s["assessed"]]
        pred = result["pred"]
        voxel_ml = float(abs(torch.linalg.det(pred.affine[:3, :3]))) / 1000
        self.volumes.append(
            {
                "name": item["name"],
                "image": item["image"],
                "status": "ok",
                "warnings": result["warnings"],
                "score": max((s["score"] for s in assessed), default=None),
                "p_diseased": max((s["p_diseased"] for s in assessed), default=None),
                "lesion_ml": float((pred == LESION).sum()) * voxel_ml,
                "not_assessed_ml": float((pred == NOT_ASSESSED).sum()) * voxel_ml,
                "slices": result["slices"],
                "seconds": {k: round(v, 2) for k, v in seconds.items()},
                "outputs": [f"{o}.nii.gz" for o in self._outputs(result)],
                "folder": str(folder),
            }
        )
        self._save_summary()

    def _write_volume(self, item: Mapping[str, Any], result: Mapping[str, Any]) -> Path:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        folder = self.output_dir / item["name"]
        partial = self.output_dir / f".{item['name']}.part"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            for key in self._outputs(result):
                save_nifti(result[key], item["image"], partial / f"{key}.nii.gz")
            draw_overview(result, item.get("mask"), item["name"], partial / "overview.png")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    @staticmethod
    def _outputs(result: Mapping[str, Any]) -> list[str]:
        return [o for o in OUTPUTS if o in result]

    def _save_summary(self) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        content = {
            "warning": "Research software, not for clinical use.",
            "settings": self.settings,
            "weights": self.weights,
            "versions": {"monai": monai.__version__, "torch": torch.__version__},
            "volumes": self.volumes,
        }
        _replace(self.output_dir / "summary.json", json.dumps(content, indent=2))
        columns = ["name", "slice", "status", "assessed", "score", "p_diseased", "error"]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for volume in self.volumes:
            writer.writerow({**volume, "slice": "volume"})
            for row in volume.get("slices", []):
                writer.writerow({"name": volume["name"], **row})
        _replace(self.output_dir / "summary.csv", text.getvalue())

    def close(self) -> None:
        """Say what was found and where it lies.

        Raises:
            SystemExit: with status 1 if a volume failed.
        """
        failures = [v for v in self.volumes if v["status"] == "failed"]
        for v in self.volumes:
            if v["status"] == "failed":
                print(f"{v['name']}: FAILED: {v['error']}")
                continue
            if v["score"] is None:
                print(f"{v['name']}: not assessed: no slice lies within the trained range.")
            else:
                print(
                    f"{v['name']}: p(diseased) {v['p_diseased']:.2f}, score {v['score']:.3f}, "
                    f"marked {v['lesion_ml']:.1f} ml, not assessed {v['not_assessed_ml']:.1f} ml of brain"
                )
            for warning in v["warnings"]:
                print(f"  WARNING: {warning}")
            print(f"  {v['folder']}: {', '.join(v['outputs'])}, overview.png")
            print("  " + ", ".join(f"{part} {s:.1f} s" for part, s in v["seconds"].items()))
        print(f"Summary: {self.output_dir / 'summary.json'} and summary.csv. Not for clinical use.")
        if failures:
            raise SystemExit(1)


def save_nifti(image: MetaTensor, source: str | Sequence[str], path: Path) -> None:
    """Save ``(C, X, Y, Z)`` with the affine, codes and units of the file it came from, channels last if several.

    Args:
        image: with its affine.
        source: the path of that file, or of one file a channel; the header of a NIfTI is taken over.
        path: what to write.
    """
    array = image.as_tensor().numpy()
    array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    first = source if isinstance(source, str) else source[0]
    affine = image.affine.numpy()
    header = nib.Nifti1Header()
    if first.lower().endswith(SUFFIXES):
        original = load_nifti(first)
        affine, header = affine_like(affine, original), original.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    nib.save(nib.Nifti1Image(array, affine, header), path)


def _replace(path: Path, text: str) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(text)
    os.replace(partial, path)
