"""The whole comparison on tiny networks and synthetic heads: every row, what is kept, and the tables made of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from small_bundle import write_small_bundle
from synthetic import write_head

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import algorithms
import compare
import packs
import rivals
import tables
import tuning

FAMILIES = {
    "reference": algorithms.Family((3, 10), ((3, 10), (4, 10))),
    "MONAI tutorial": algorithms.Family((2, 10), ((2, 10),)),
    "DDPM, guided": algorithms.Family((60, 10), ((60, 10),)),
    "DDPM, unguided": algorithms.Family((60, 0), ((60, 0),), scaled=False),
}


def lists(folder: Path) -> Path:
    """A datalist with two heads a split, of which two slices are labelled: one with the lesion, one without."""
    content: dict[str, list[dict[str, Any]]] = {}
    for split in ("training", "validation", "test"):
        for patient in ("a", "b"):
            place = folder / split / patient
            place.mkdir(parents=True)
            item = write_head(place)
            image = nib.load(item["image"])
            lesion = (np.asarray(image.dataobj) > 150).astype(np.uint8)
            nib.save(nib.Nifti1Image(lesion, image.affine), place / "mask.nii.gz")
            label = [-1, 0, 1, -1, -1, -1]
            one = {
                "image": item["image"],
                "mask": str(place / "mask.nii.gz"),
                "label": label,
                "subject": split + patient,
            }
            content.setdefault(split, []).append(one)
            assert lesion[..., 2].any()
        for one in content[split]:  # slice 1 has none either
            mask = nib.load(one["mask"])
            kept = np.asarray(mask.dataobj) * (np.arange(6) != 1)
            nib.save(nib.Nifti1Image(kept.astype(np.uint8), mask.affine), one["mask"])
    path = folder / "datalist.json"
    path.write_text(json.dumps(content))
    return path


def test_the_comparison_from_a_datalist_to_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: the second run makes no map again and finds the same. Then the maps alone, from the pack."""
    bundle = write_small_bundle(tmp_path)
    monkeypatch.syspath_prepend(str(bundle))  # for its `bright`
    monkeypatch.setattr("scripts.bundle.bundle_root", lambda: str(bundle))
    monkeypatch.setattr("training.ROOT", bundle.parent)
    monkeypatch.setattr(compare, "REFERENCE", "reference, L = 3, s = 10")
    monkeypatch.setattr(compare, "PUBLISHED", "reference, L = 3, s = 10, the paper's map")
    names = {f.name(n, s): (n, s) for n, f in FAMILIES.items() for s in f.settings}
    for name, values in (("FAMILIES", FAMILIES), ("NAMES", names)):
        there = getattr(algorithms, name)
        monkeypatch.setattr(algorithms, name, values)
        for module in (compare, tuning):
            if getattr(module, name, None) is there:
                monkeypatch.setattr(module, name, values)
    ours = algorithms.Algorithms.ours

    def short(self: algorithms.Algorithms, scale: float, **settings: Any) -> algorithms.Sampler:
        few = {k: 3 for k in settings if k.startswith("displayable_configs#n")}
        return ours(self, scale, **settings | few)

    monkeypatch.setattr(algorithms.Algorithms, "ours", short)
    monkeypatch.setattr(tuning, "cost_of", lambda row, *others: {"seconds": 0.5, "memory": 100.0})
    few_rivals = {n: rivals.RIVALS[n] for n in ("restoration of synthetic lesions", "Grad-CAM of the classifier")}
    for module in (compare, tuning, rivals):
        monkeypatch.setattr(module, "RIVALS", few_rivals)
    datalist = str(lists(tmp_path))
    given = {"results": str(tmp_path / "r"), "cache_dir": str(tmp_path / "c"), "images": 32, "device": "cpu"}
    compare.compare("toy", datalist, output=str(tmp_path / "compare" / "toy"), **given)
    written = (tmp_path / "compare" / "toy.json").read_text()
    record = json.loads(written)
    shown = {n for found in record["tuned"].values() for n in found.get("shown", [])}
    assert "reference, L = 3, s = 10" in shown and set(record["tuned"]) == {*FAMILIES, *few_rivals}
    methods = {(r["slices"], r["method"]) for r in record["rows"]}
    assert {(4, "ours, default"), (4, "the student's network, taught by masks")} < methods
    assert {(4, f"{name}, the paper's map") for name in shown} < methods
    assert record["images_of_training_of_each_rival"] == 32 and len(record["subset_slices"]["test"]) == 4
    assert all(0 <= float(r["pixel_ap"].split()[0]) <= 1 for r in record["rows"])
    monkeypatch.setattr(algorithms.Algorithms, "timed", None)  # nothing may be sampled again
    compare.compare("toy", datalist, output=str(tmp_path / "compare" / "toy"), **given)
    assert (tmp_path / "compare" / "toy.json").read_text() == written
    compare.compare("toy", only="ours", pack=str(tmp_path / "r" / "toy.pt"), **given)
    with pytest.raises(ValueError, match="there is no such pack"):
        compare.compare("other", **given)
    for kind in ("all", "subset", "differences", "subset_differences", "sizes", "tuning", "scaling"):
        text = tables.rendered(f"<!-- table: compare/toy.json {kind} -->\n<!-- end -->", tmp_path)
        assert text.count("\n|") > 2, kind
    assert packs.read_pack(tmp_path / "r" / "toy.pt")[0]["test"].lesion is None
