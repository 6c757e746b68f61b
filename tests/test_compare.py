"""The whole comparison on tiny networks and synthetic heads: every row, what is kept, and the tables made of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from small_bundle import write_small_bundle
from synthetic import write_head

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import algorithms
import compare
import costs
import packs
import rivals
import seeds
import speed
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


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """A datalist and options of a comparison of tiny networks, few steps, few settings and two rivals."""
    bundle = write_small_bundle(tmp_path)
    monkeypatch.syspath_prepend(str(bundle))  # for its `bright`
    monkeypatch.setattr("scripts.bundle.bundle_root", lambda: str(bundle))
    monkeypatch.setattr(compare, "REFERENCE", "reference, L = 3, s = 10")
    monkeypatch.setattr(compare, "PUBLISHED", "reference, L = 3, s = 10, the paper's map")
    names = {f.name(n, s): (n, s) for n, f in FAMILIES.items() for s in f.settings}
    for name, values in (("FAMILIES", FAMILIES), ("NAMES", names)):
        there = getattr(algorithms, name)
        monkeypatch.setattr(algorithms, name, values)
        for module in (compare, tuning, speed):
            if getattr(module, name, None) is there:
                monkeypatch.setattr(module, name, values)
    monkeypatch.setattr("scripts.judging.bootstrap.LEAST_PATIENTS", 2)
    ours = algorithms.Algorithms.ours

    def short(self: algorithms.Algorithms, scale: float, **settings: Any) -> algorithms.Sampler:
        few = {k: 3 for k in settings if k.startswith("displayable_configs#n")}
        return ours(self, scale, **settings | few)

    monkeypatch.setattr(algorithms.Algorithms, "ours", short)
    monkeypatch.setattr(tuning, "cost_of", lambda row, *others: {"seconds": 0.5, "memory": 100.0})
    few_rivals = {n: rivals.RIVALS[n] for n in ("restoration of synthetic lesions", "Grad-CAM of the classifier")}
    for module in (compare, tuning, rivals):
        monkeypatch.setattr(module, "RIVALS", few_rivals)
    return str(lists(tmp_path)), {
        "results": str(tmp_path / "r"),
        "cache_dir": str(tmp_path / "c"),
        "images": 32,
        "device": "cpu",
    }


def test_the_comparison_from_a_datalist_to_its_tables(
    toy: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice: the second run makes no map again and finds the same. Then the maps alone, from the pack."""
    datalist, given = toy
    compare.compare("toy", datalist, output=str(tmp_path / "compare" / "toy"), **given)
    written = (tmp_path / "compare" / "toy.json").read_text()
    record = json.loads(written)
    shown = {n for found in record["tuned"].values() for n in found.get("shown", [])}
    assert "reference, L = 3, s = 10" in shown and set(record["tuned"]) == {*FAMILIES, *compare.RIVALS}
    methods = {(r["slices"], r["method"]) for r in record["rows"]}
    assert {(4, "ours, default"), (4, "the student's network, taught by masks")} < methods
    assert {(4, f"{name}, the paper's map") for name in shown} < methods
    assert record["images_of_training_of_each_rival"] == 32 and len(record["subset_slices"]["test"]) == 4
    assert all(0 <= float(r["pixel_ap"].split()[0]) <= 1 for r in record["rows"])
    # beside itself, every patient is there twice and no difference is another
    compare.compare("toy", datalist, output=str(tmp_path / "both"), beside="toy", beside_datalist=datalist, **given)
    both = json.loads((tmp_path / "both.json").read_text())["together"]
    assert (both["with"], both["patients"], both["slices"]) == ("toy", 2, 8)
    names = ("ours, default - reference, L = 3, s = 10", "ours, default - FLAIR minus slice median, 3x3 median")
    for name in names:
        one, two = record["subset"]["differences"][name], both["differences"][name]
        assert two["pixel_ap"][0] == pytest.approx(one["pixel_ap"][0], abs=1e-6)
    assert "ours, default - reference, tuned, the paper's map" in both["differences"]
    assert names[0] in tables.rendered("<!-- table: both.json together -->\n<!-- end -->", tmp_path)
    timed = {r["method"]: r.get("seconds") for r in record["rows"]}
    assert timed["ours, default"] == 0.5 and all(timed[name] > 0 for name in compare.RIVALS)
    [sample] = (tmp_path / "r").glob("sample-*.pt")
    for row in ("ours, default", "ours, student", "reference, L = 3, s = 10"):
        cost = costs.cost(row, str(sample), 0, "cpu", [])
        assert 0 < cost["seconds"] < 60 and 100 < cost["memory"] < 1e5
    monkeypatch.setattr(algorithms.Algorithms, "timed", None)  # nothing may be sampled again
    compare.compare("toy", datalist, output=str(tmp_path / "compare" / "toy"), **given)
    assert (tmp_path / "compare" / "toy.json").read_text() == written
    # with the settings that its own table chose, nothing is tried or timed and every row is the same
    monkeypatch.setattr(tuning, "cost_of", None)
    monkeypatch.setattr(tuning, "seconds_of", None)
    compare.compare(
        "toy", datalist, output=str(tmp_path / "told"), settings_of=str(tmp_path / "compare" / "toy.json"), **given
    )
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["settings_chosen_on"], told["rows"]) == ("toy", record["rows"])
    table = str(tmp_path / "compare" / "toy.json")
    # so it is with the settings of what is beside, of which no rival is made
    monkeypatch.setattr(tuning.Maps, "cost_of_rival", None)
    maps = tuning.Maps(tmp_path / "r" / "toy.pt", tmp_path / "r", torch.device("cpu"), 32, settings_of=table)
    maker = compare.Maker(maps, whole=False)
    of_reference = [
        f"{name}{way}" for name in record["tuned"]["reference"]["shown"] for way in ("", ", the paper's map")
    ]
    ours = ["ours, default", "ours, default, the paper's map", "ours, counterfactual alone", "ours, student"]
    assert set(maker.of("test")[0]) == {*ours, *of_reference}
    assert {name: found["shown"] for name, found in maker.tuned.items()} == {
        "reference": record["tuned"]["reference"]["shown"]
    }
    (tmp_path / "others.json").write_text(json.dumps(record | {"weights": {}}))
    with pytest.raises(ValueError, match=r"others.json: must be a table of compare.py of the weights .*, got \{\}"):
        compare.compare("toy", datalist, settings_of=str(tmp_path / "others.json"), **given)
    (tmp_path / "none.json").write_text(json.dumps({"weights": record["weights"]}))
    with pytest.raises(ValueError, match=r"none.json: must be a table of compare.py"):
        compare.compare("toy", datalist, settings_of=str(tmp_path / "none.json"), **given)
    for name, found in record["tuned"].items():
        of_told = told["tuned"][name]
        assert of_told.get("tried", []) == [] and of_told.get("chosen") == found.get("chosen")
        assert of_told.get("best") == found.get("best") and of_told.get("shown") == found.get("shown")
        for values in of_told.get("pixel_ap", {}).values():
            assert set(values) == set(found["shown"])
    assert "32 images: " in tables.rendered("<!-- table: told.json tuning -->\n<!-- end -->", tmp_path)
    compare.compare("toy", only="ours", pack=str(tmp_path / "r" / "toy.pt"), **given)
    with pytest.raises(ValueError, match="given together, or neither"):
        compare.compare("toy", datalist, beside="other", **given)
    with pytest.raises(ValueError, match="there is no such pack"):
        compare.compare("other", **given)
    for kind in ("all", "subset", "differences", "subset_differences", "sizes", "tuning", "scaling"):
        text = tables.rendered(f"<!-- table: compare/toy.json {kind} -->\n<!-- end -->", tmp_path)
        assert text.count("\n|") > 2, kind
    tuned = tables.rendered("<!-- table: compare/toy.json tuning -->\n<!-- end -->", tmp_path)
    name, rival = next((n, found) for n, found in record["tuned"].items() if len(found.get("tried", ())) > 1)
    tried = ", ".join(
        f"{key} {v:g}: {one['pixel_ap']:.3f}" for one in rival["tried"] for key, v in one["setting"].items()
    )
    assert f"| {name} | 3 images: {tried}; 32: {rival['chosen']['pixel_ap']:.3f} | " in tuned
    assert packs.read_pack(tmp_path / "r" / "toy.pt")[0]["test"].lesion is None


def test_what_makes_it_fast(toy: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quality is that of `compare`, ratios are those of the seconds, and a second run takes no time again."""
    datalist, given = toy
    compare.compare("toy", datalist, only="family: reference", **given)
    monkeypatch.setattr(speed, "STEPS", (2, 3))
    monkeypatch.setattr(speed.torch, "compile", lambda network: network)
    del given["cache_dir"], given["images"]
    options = {"pack": str(tmp_path / "r" / "toy.pt"), "slices": 2, "output": str(tmp_path / "speed.json")}
    speed.speed(**options, **given)
    record = json.loads((tmp_path / "speed.json").read_text())
    tuned = tuning.Maps(tmp_path / "r" / "toy.pt", tmp_path / "r", speed.torch.device("cpu")).tuned_settings(
        "reference"
    )
    assert record["reference"] == tuned["best"][compare.COUNTERFACTUAL]
    quality = record["pixel_ap_on_validation"]
    assert quality["reference"] == tuned["pixel_ap"][compare.COUNTERFACTUAL][record["reference"]]
    assert (
        quality["default"] == quality["batches of 2"] == quality["compilation"]
    )  # the same way, but for what changes nothing
    assert set(record["default_by_number_of_steps"]) == {"2", "3"}
    seconds = record["seconds_a_slice"]
    assert {len(of_way) for of_way in seconds.values()} == {2}
    first, second = seconds["reference"], seconds["fewer steps"]
    assert record["times_as_fast_as_the_one_before"]["fewer steps"] == [
        round(a / b, 3) for a, b in zip(first, second, strict=True)
    ]
    assert "| reference |" in tables.rendered("<!-- table: speed.json speed -->\n<!-- end -->", tmp_path)
    speed.speed(**options, **given)
    assert json.loads((tmp_path / "speed.json").read_text())["seconds_a_slice"] == seconds


def test_seeds_of_the_student(toy: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings, their spread, and a second run that trains no more and finds the same."""
    datalist, given = toy
    options = {**given, "seeds": (0, 1), "images": 16, "output": str(tmp_path / "seeds" / "toy.json")}
    seeds.seeds("toy", datalist, **options)
    written = (tmp_path / "seeds" / "toy.json").read_text()
    record = json.loads(written)
    values = [record["seeds"][seed]["pixel_ap"] for seed in ("0", "1")]
    assert values[0] != values[1] and record["images"] == 16
    assert record["spread"]["pixel_ap"]["mean"] == pytest.approx(sum(values) / 2)
    assert record["spread"]["pixel_ap"]["standard_deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "| seed 1 |" in tables.rendered("<!-- table: seeds/toy.json seeds -->\n<!-- end -->", tmp_path)
    monkeypatch.setattr(seeds, "run_training", None)  # no training any more
    seeds.seeds("toy", datalist, **options)
    assert (tmp_path / "seeds" / "toy.json").read_text() == written
