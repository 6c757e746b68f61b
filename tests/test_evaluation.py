"""Evaluation by its config: masks, boxes or labels alone; what fails, what is left out, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from scripts.bundle import bundle_root
from scripts.errors import ExhaustedError, cause_of
from scripts.images.brain import ExtractBraind
from scripts.images.normalization import BACKGROUND
from scripts.judging.baselines import Brightness
from scripts.judging.on_input import cases_of
from scripts.judging.readings import COUNTERFACTUAL, OURS, P_DISEASED, PAPER, STUDENT
from scripts.judging.scored import Scored
from scripts.judging.splits import items_of
from scripts.judging.truth import Truth, slice_labels, truth_of
from scripts.method.inferer import CounterfactualInferer
from scripts.weights import MANIFEST, read_manifest
from synthetic import GRIDS, head, write_head
from tiny_run import TINY

CONFIGS = Path(bundle_root()) / "configs"
MEDIAN = "FLAIR minus slice median"
SHIPPED = f"{OURS}, at the bundle's threshold"

CALIBRATED = read_manifest(Path(bundle_root()) / "models" / MANIFEST)["calibration"]["values"]


def write_patients(folder: Path) -> None:
    """A datalist with two patients a split, the lesion outlined in the lower of its slices, 2 and 3."""
    datalist: dict[str, list[dict[str, Any]]] = {"validation": [], "test": []}
    for split, items in datalist.items():
        for patient in ("A", "B"):
            volume = folder / f"{split}{patient}"
            volume.mkdir(parents=True)
            image = nib.load(write_head(volume)["image"])
            truth = np.asarray(image.dataobj) == 170
            truth[:, :, 3:] = False
            # stored in another order of the axes than the image
            seg = nib.Nifti1Image(truth.astype(np.uint8), image.affine).as_reoriented(
                np.array([[1, -1], [2, 1], [0, -1]])
            )
            nib.save(seg, volume / "seg.nii.gz")
            labels = [int(truth[:, :, z].any()) if 1 <= z <= 4 else -1 for z in range(6)]
            paths = {"image": f"{volume.name}/flair.nii.gz", "mask": f"{volume.name}/seg.nii.gz"}
            items.append({**paths, "label": labels, "subject": volume.name})
    (folder / "datalist.json").write_text(json.dumps(datalist))


def changed(folder: Path, change: Any) -> None:
    """Rewrite the datalist with a function of each item and its split."""
    path = folder / "datalist.json"
    content = json.loads(path.read_text())
    content = {split: [change(split, item) for item in items] for split, items in content.items()}
    path.write_text(json.dumps({split: [i for i in items if i] for split, items in content.items() if any(items)}))


def parsed(folder: Path, *configs: str, **overrides: Any) -> ConfigParser:
    """Configs over one another with tiny networks, the same in every call."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in ("inference", *configs)])
    parser.update({**TINY, "datalist": str(folder / "datalist.json"), "cache_dir": str(folder / "cache")})
    torch.manual_seed(0)
    for name in ("network", "classifier", "student"):
        if parser[name] != "@student":
            parser[name] = f"@{name}_def"
    parser.update(overrides)
    return parser


def evaluate(folder: Path, out: Path, *configs: str, **overrides: Any) -> dict[str, Any]:
    """Run evaluate.json; the record."""
    small = {} if configs else {"displayable_configs#noise_level": 100}
    parser = parsed(folder, *configs, "evaluate", **{**small, "output_dir": str(out), **overrides})
    parser.get_parsed_content("run")
    return json.loads((out / "results.json").read_text())


@pytest.fixture
def patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ExtractBraind, "_segment", lambda self, image: image.as_tensor()[:1] > 0)
    monkeypatch.setattr("scripts.judging.bootstrap.NUM_RESAMPLES", 20)
    monkeypatch.setattr("scripts.judging.bootstrap.LEAST_PATIENTS", 2)
    write_patients(tmp_path)
    return tmp_path


def test_evaluation_by_its_config(patients: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a small data set, with tiny networks and the ellipsoid as brain."""
    out = patients / "out"
    record = evaluate(patients, out)
    tables = [f"{split}_{what}" for split in ("test", "validation") for what in ("foreground", "reliability", "scores")]
    tables.append("test_image")
    files = ["cases.png", "reliability.png", "results.json", *(f"{t}.{end}" for t in tables for end in ("csv", "md"))]
    assert sorted(p.name for p in out.iterdir()) == sorted(files)
    test = record["test"]
    numbers = {"patients": 2, "volumes": 2, "slices": 8, "diseased_slices": 2, "diseased_slices_with_mask": 2}
    assert {name: test[name] for name in numbers} == numbers and record["failed"] == {}
    assert set(test["scores"]) == {P_DISEASED, OURS, COUNTERFACTUAL, STUDENT, PAPER, *map(str, baselines())}
    assert test["left_out"] == {
        "boxes found": "there are no boxes",
        "lesions found, 10 ml and more": "no lesion of 10 ml or more is known in a volume whose lesions are judged whole",
        "lesions found, under 1 ml": "no lesion under 1 ml is known in a volume whose lesions are judged whole",
        "pointing game": "there are no boxes",
        "volume AP": "all are of one class, or have one slice",
        "volume AUROC": "all are of one class, or have one slice",
    }
    # the lesion lies in slices 2 and 3, as large in both, and alone is brighter than its slice's median: all of it is found,
    # and the half in slice 3, which the mask leaves out, is false
    image, brain = head(GRIDS["plain"][0])
    lesion, others = int((image[..., 2] == 170).sum()), int(brain[..., 1:5].sum() - (image[..., 2] == 170).sum())
    for domain, pixels in (("foreground", others), ("image", 64 * 80 * 4 - lesion)):
        baseline = test[domain][MEDIAN]
        assert baseline["threshold_by"] == "best pooled Dice"
        assert baseline["dice_threshold"] == baseline["dice_oracle"] == pytest.approx(2 / 3)
        assert baseline["dice_threshold_volume"] == pytest.approx(2 / 3)
        assert baseline["pixel_ap"] == pytest.approx(1 / 2)
        assert baseline["pixel_auroc"] == pytest.approx(1 - lesion / pixels / 2, abs=1e-3)
        assert baseline["healthy_area"] == lesion / 3
        shipped = test[domain][SHIPPED]
        assert (shipped["threshold"], shipped["threshold_by"]) == (CALIBRATED["threshold"], "the bundle's")
        assert shipped["pixel_ap"] == test[domain][OURS]["pixel_ap"]
        difference = test[domain]["difference to the best baseline"]
        assert difference.pop("of") == OURS and difference.pop("to") in baselines()
        assert {name: len(values) for name, values in difference.items()} == {
            "pixel_ap": 3,
            "dice_threshold": 3,
            "image_auroc": 3,
        }
    said = capsys.readouterr().out
    assert "; pointing game, boxes found (there are no boxes)." in said and "2 patients, 2 volumes" in said


def test_nothing_of_an_earlier_evaluation_stays_beside_the_results(patients: Path) -> None:
    """Of the first, with all there is, only what isn't an evaluation's; where it fails, the earlier one stays whole."""
    out = patients / "out"
    for path in patients.glob("*/seg.nii.gz"):
        image = nib.load(path)
        values = np.asarray(image.dataobj).copy()
        values[tuple(np.argwhere(values)[::2].T)] = 4
        nib.save(nib.Nifti1Image(values, image.affine), path)
    changed(patients, lambda split, item: item | {"groups": {"hospital": "X"}})
    evaluate(patients, out, "preview")
    tables = {"test_groups", "test_parts", *(f"validation_{name}" for name in ("foreground", "reliability", "scores"))}
    only_first = {"cases.png", *(f"{table}.{ending}" for table in tables for ending in ("csv", "md"))}
    before = {p.name for p in out.iterdir()}
    assert only_first < before
    for name in ("notes.md", "validation_notes.csv"):
        (out / name).write_text("mine")
    with pytest.raises(RuntimeError) as caught:
        evaluate(patients, out, "preview", **{"evaluation#test": [{"image": "none.nii", "label": 1}]})
    assert "no slice of the test volumes" in str(cause_of(caught.value))
    assert {p.name for p in out.iterdir()} == before | {"notes.md", "validation_notes.csv"}
    plain = {"image", "label", "subject"}
    changed(patients, lambda split, item: {k: item[k] for k in plain} if split == "test" else None)
    assert "validation" not in evaluate(patients, out, "preview")
    assert {p.name for p in out.iterdir()} == before - only_first | {"notes.md", "validation_notes.csv"}


@pytest.mark.parametrize("level", [-1024.0, 500.0])
def test_where_air_is_not_0_changes_no_number(patients: Path, level: float) -> None:
    """Baselines see the image at the zero that the networks see it at; a reader's offset is nothing of the lesion."""
    plain = evaluate(patients, patients / "plain", "preview")
    for path in patients.glob("*/flair.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.float32(level), image.affine), path)
    moved = evaluate(patients, patients / "moved", "preview")
    assert MEDIAN in plain["test"]["foreground"]
    for domain in ("foreground", "image"):
        for name, values in plain["test"][domain].items():
            for measure, value in values.items():
                assert moved["test"][domain][name][measure] == pytest.approx(value, abs=1e-5), (name, measure)


def test_a_baseline_sees_the_intensities_that_the_networks_see() -> None:
    """Without the level of air, the coil's field and what is not finite."""
    seen = torch.rand(2, 8, 8, 2, generator=torch.Generator().manual_seed(0)) * 1.5 - 0.75
    field = torch.linspace(0.5, 2, 8).view(1, 8, 1, 1).expand(2, 8, 8, 2).contiguous()
    scale, level = torch.tensor([100.0, 7.0]), torch.tensor([-1024.0, 3.0])
    shape = (-1, 1, 1, 1)
    raw = (seen + 1) * scale.view(shape) * field + level.view(shape)
    raw[:, 3, 4, 1] = torch.nan
    seen[:, 3, 4, 1] = BACKGROUND
    lps = torch.diag(torch.tensor([-1.0, -1, 1, 1]).double())
    meta = {"intensity_scale": scale, "intensity_level": level, "input_affine": lps}
    volume = {
        "image": MetaTensor(seen, affine=lps, meta=meta),
        "input_image": MetaTensor(raw, affine=lps),
        "foreground": MetaTensor(torch.ones(1, 8, 8, 2), affine=lps),
        "bias_field": MetaTensor(field, affine=lps),
    }
    both = [Brightness(("T1", "FLAIR"), channel) for channel in (0, 1)]
    cases, _ = cases_of({"image": "a", "label": [0, 1]}, volume, {}, {}, both)
    for z, case in enumerate(cases):
        for channel, baseline in enumerate(both):
            np.testing.assert_allclose(case.maps[baseline.name], seen[channel, ..., z], atol=1e-4)


def test_volumes_that_share_a_file_are_told_apart(patients: Path) -> None:
    """Of two time points beside one T1, each is a volume of its own, and each is named if it fails."""
    lps = torch.diag(torch.tensor([-1.0, -1, 1, 1]).double())
    seen = torch.zeros(2, 8, 8, 2)
    volume = {
        "image": MetaTensor(seen, affine=lps, meta={"intensity_scale": torch.ones(2), "input_affine": lps}),
        "input_image": MetaTensor(seen, affine=lps),
        "foreground": MetaTensor(torch.ones(1, 8, 8, 2), affine=lps),
    }
    items = [{"image": ["A/t1.nii", f"A/flair{n}.nii"], "label": [0, n], "subject": "A"} for n in (0, 1)]
    cases = [case for item in items for case in cases_of(item, volume, {}, {}, [Brightness(("T1", "FLAIR"), 1)])[0]]
    assert [c.volume for c in cases] == ["A/t1.nii, A/flair0.nii"] * 2 + ["A/t1.nii, A/flair1.nii"] * 2
    scored = Scored("FLAIR intensity")
    for case in cases:
        scored.add(case)
    assert scored.volumes.diseased == [0, 1] and {c.subject for c in cases} == {"A"}
    # of a bundle of one channel, both fail
    _, failed = parsed(patients, "preview", "evaluate").get_parsed_content("volumes").cases(items, "test")
    assert list(failed) == ["A/t1.nii, A/flair0.nii", "A/t1.nii, A/flair1.nii"]


def baselines() -> list[str]:
    return ["FLAIR intensity", MEDIAN, f"{MEDIAN}, 3x3 median"]


def test_an_evaluation_goes_on_after_a_bad_volume_and_where_it_was_stopped(
    patients: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The bad one is named and the status is 1; once it is mended, it alone is computed; other settings compute all anew."""
    seen: list[int] = []
    run = CounterfactualInferer.__call__
    monkeypatch.setattr(CounterfactualInferer, "__call__", lambda *a, **k: seen.append(1) or run(*a, **k))
    bad = patients / "testA" / "flair.nii.gz"
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    with pytest.raises(SystemExit) as stop:
        evaluate(patients, patients / "out")
    assert stop.value.code == 1 and f"FAILED {bad}: " in caplog.text
    first = json.loads((patients / "out" / "results.json").read_text())
    assert list(first["failed"]) == [str(bad)] and "flair.nii.gz: can't be read" in first["failed"][str(bad)]
    assert first["test"]["patients"] == 1 and len(seen) == 3
    # of one patient there is no interval
    assert list(first["test"]["foreground"]["difference to the best baseline"]) == ["of", "to"]
    bad.write_bytes(good)
    second = evaluate(patients, patients / "out")
    assert len(seen) == 4 and second["test"]["patients"] == 2 and second["failed"] == {}
    third = evaluate(patients, patients / "out")
    assert len(seen) == 4 and third == second
    # neither another threshold nor another temperature needs a network
    fourth = evaluate(patients, patients / "warm", temperature=3.0, **{"displayable_configs#threshold": 0.2})
    assert len(seen) == 4 and fourth["test"]["foreground"][SHIPPED]["threshold"] == 0.2
    assert evaluate(patients, patients / "new", **{"displayable_configs#guidance_scale": 5.0})["failed"] == {}
    assert len(seen) == 8
    assert sorted(p.suffix for p in (patients / "cache").glob("evaluated-*")) == [".pt"] * 8


def test_warnings_of_volumes_are_said(patients: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once a volume, by its name, whether it is computed now or was before."""
    for _ in range(2):
        caplog.clear()
        evaluate(patients, patients / "out")
        said = [r.getMessage().split(" 225 ml")[0] for r in caplog.records if "too small" in r.getMessage()]
        names = ("validationA", "validationB", "testA", "testB")
        assert said == [f"{patients / name / 'flair.nii.gz'}: The brain measures" for name in names]


def test_labelled_slices_without_foreground_are_counted(patients: Path, caplog: pytest.LogCaptureFixture) -> None:
    """There is no brain in slices 0 and 5. They are said and counted whether the volume is computed now or was before."""
    apart = {"testA": [0, 0, 1, 1, 0, 1], "testB": [-1, 0, 1, 1, 0, 1]}
    changed(patients, lambda split, item: item | {"label": apart.get(item["subject"], item["label"])})
    for _ in range(2):
        caplog.clear()
        record = evaluate(patients, patients / "out", "preview")
        said = [r.getMessage() for r in caplog.records if "foreground" in r.getMessage()]
        why = "No foreground was found in labelled slices, which are left out:"
        assert said == [
            f"{patients / 'testA' / 'flair.nii.gz'}: {why} 0 (healthy), 5 (diseased).",
            f"{patients / 'testB' / 'flair.nii.gz'}: {why} 5 (diseased).",
        ]
        numbers = ("slices", "diseased_slices", "slices_without_foreground", "diseased_slices_without_foreground")
        assert [record["test"][name] for name in numbers] == [8, 4, 3, 2]
        assert [record["validation"][name] for name in numbers] == [8, 2, 0, 0]


def test_groups_of_patients(patients: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group has what an evaluation of its patients alone says; a group of all what that of all says; none asks a network."""
    alone = {}
    for patient in "AB":
        only = {
            "evaluation#test": [
                i for i in items_of(str(patients / "datalist.json"), "test") if i["subject"][-1] == patient
            ]
        }
        alone[patient] = evaluate(patients, patients / "alone", **only)["test"]
    assert not (patients / "alone" / "test_groups.csv").exists()
    sex = {"testA": "F", "testB": "M"}
    changed(
        patients,
        lambda split, item: item | {"groups": {"hospital": "X", "sex": sex.get(item["subject"], "F")}},
    )
    # as a datalist in another folder has them, whose cache is the same
    (patients / "lists").mkdir()
    (patients / "datalist.json").rename(patients / "lists" / "datalist.json")
    path = patients / "lists" / "datalist.json"
    path.write_text(path.read_text().replace('"image": "', '"image": "../').replace('"mask": "', '"mask": "../'))
    monkeypatch.setattr(CounterfactualInferer, "__call__", lambda *a, **k: pytest.fail("asks a network"))
    test = evaluate(patients, patients / "out", datalist=str(path), **{"evaluation#validation": []})["test"]
    assert list(test["groups"]) == ["hospital: X", "sex: F", "sex: M"]
    for group, whole in (("hospital: X", test), ("sex: F", alone["A"]), ("sex: M", alone["B"])):
        found = test["groups"][group]
        assert [found[k] for k in ("patients", "slices", "diseased_slices")] == [
            whole[k] for k in ("patients", "slices", "diseased_slices")
        ]
        assert found["p_auroc"] == whole["scores"][P_DISEASED]["image_auroc"]
        for name in ("pixel_ap", "dice_threshold", "lesions_found", "false_lesions", "image_auroc"):
            assert found[name] == whole["foreground"][SHIPPED][name]
        assert 0 < found["p_healthy"] < 1 and 0 < found["p_diseased"] < 1
    first, *rows = (patients / "out" / "test_groups.csv").read_text().splitlines()
    assert first.startswith("group (pixels inside the foreground),patients,slices,diseased slices,image AUROC of p(dis")
    assert [row.split(",")[:4] for row in rows] == [
        ["hospital: X", "2", "8", "2"],
        *([s, "1", "4", "1"] for s in ("sex: F", "sex: M")),
    ]


@pytest.mark.parametrize("labels", [1, [1] * 6, [1, -1] * 3, [-1, -1, -1, 1, -1, -1]])
@pytest.mark.parametrize(("configs", "method"), [(("evaluate",), OURS), (("preview", "evaluate"), STUDENT)])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_what_is_read_from_disk_is_what_the_inferer_gives(
    patients: Path, temperature: float, configs: tuple[str, ...], method: str, labels: int | list[int]
) -> None:
    """Maps and scores of kept cases, gated anew, are those of the bundle's own postprocessing; the files are mapped.

    So they are where few slices are labelled, whose neighbours count, and where slices with too little foreground are, too.
    """
    path = patients / "testA" / "flair.nii.gz"
    image = nib.load(path)
    ramp = np.linspace(0.7, 1.3, 6, dtype=np.float32)  # else two slices are alike
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * ramp, image.affine), path)
    parser = parsed(patients, *configs, temperature=temperature, min_area=1500)
    volumes = parser.get_parsed_content("volumes")
    item = items_of(str(patients / "datalist.json"), "test")[0] | {"label": labels, "mask": None}
    kept, failed = volumes.cases([item], "test")
    assert not failed
    volume = parser.get_parsed_content("preprocessing")({"image": item["image"]})
    inside = volume["foreground"].as_tensor()[None]
    pred = volumes.inferer(volume["image"].as_tensor()[None], volumes.network, inside)
    volume["pred"] = {name: values[0] for name, values in pred.items()}
    done = parser.get_parsed_content("postprocessing")(volume)
    slices = {s["slice"]: s for s in done["slices"] if s["assessed"]}
    a = done["anomaly_map"].as_tensor().numpy()[0]
    cases = list(kept)
    assert not any(c.truth is not None for c in cases)
    # slices 1 and 4 have 1328 pixels of brain, 0 and 5 none
    assert sorted(slices) == [2, 3]
    expected = [2, 3] if isinstance(labels, int) else [n for n in range(1, 5) if labels[n] == 1]
    assert [c.slice for c in cases] == expected
    for case in (case for case in cases if case.slice in slices):
        assert case.scores[P_DISEASED] == pytest.approx(slices[case.slice]["p_diseased"], abs=1e-6)
        assert case.scores[method] == pytest.approx(slices[case.slice]["score"], rel=1e-4)
        on_input = np.flip(a[..., case.slice], (0, 1))  # to the left and to posterior
        np.testing.assert_allclose(case.maps[method], on_input, atol=1e-5)


def test_without_subjects_each_file_is_a_patient(patients: Path) -> None:
    """Though all have the name flair.nii.gz."""
    changed(patients, lambda split, item: {k: v for k, v in item.items() if k != "subject"})
    test = evaluate(patients, patients / "out", "preview")["test"]
    assert (test["patients"], test["volumes"]) == (2, 2)


@pytest.mark.parametrize("name", ["network", "classifier", "student"])
def test_networks_that_give_no_numbers_fail_a_volume_as_in_inference(patients: Path, name: str) -> None:
    """Nothing of it is kept, and no map of it is judged: without a counterpart, every bright lesion would be found."""
    parser = parsed(patients, "evaluate", **{"displayable_configs#noise_level": 100})
    parser.get_parsed_content(name).register_forward_hook(lambda module, given, found: found * torch.nan)
    volumes = parser.get_parsed_content("volumes")
    [item, _] = items_of(str(patients / "datalist.json"), "test")
    kept, failed = volumes.cases([item], "test")
    assert list(failed) == [item["image"]] and not list(kept)
    volume = parser.get_parsed_content("preprocessing")({"image": item["image"]})
    inside = volume["foreground"].as_tensor()[None]
    pred = volumes.inferer(volume["image"].as_tensor()[None], volumes.network, inside)
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("postprocessing")({**volume, "pred": {k: v[0] for k, v in pred.items()}})
    assert failed[item["image"]] == str(cause_of(caught.value))
    assert "flair.nii.gz: the networks gave NaN or infinity in 4 of 4 assessed slices" in failed[item["image"]]


@pytest.mark.parametrize("labels", [[-1, -1, 1, 1, 0, -1], [-1, 0, 1, -1, -1, -1], [-1, -1, -1, 1, 0, -1]])
@pytest.mark.parametrize("upwards", [True, False])
def test_a_lesion_whose_outer_slices_are_not_judged_is_of_no_size(
    patients: Path, upwards: bool, labels: list[int]
) -> None:
    """It lies in slices 2 and 3, of which the first or the last may be left out, in files of either order."""
    whole = labels[2] == labels[3] == 1
    for path in patients.glob("*/flair.nii.gz"):
        image = nib.load(path).as_reoriented(np.array([[0, 1], [1, 1], [2, 1 if upwards else -1]]))
        lesion = np.asarray(image.dataobj) == 170
        assert lesion.any(axis=(0, 1)).tolist() == [False, False, True, True, False, False]
        assert 1 <= lesion.sum() * abs(np.linalg.det(image.affine)) / 1000 < 10
        nib.save(image, path)
        nib.save(nib.Nifti1Image(lesion.astype(np.uint8), image.affine), path.with_name("seg.nii.gz"))
    changed(patients, lambda split, item: item | {"label": labels if upwards else labels[::-1]})
    found = evaluate(patients, patients / "out", "preview")["test"]["foreground"][MEDIAN]
    assert found["lesions_found"] == 1
    sizes = {name for name in found if name.startswith("lesions_found_")}
    assert sizes == ({"lesions_found_medium"} if whole else set())


@contextmanager
def full_disk(path: Path) -> Iterator[Path]:
    yield Path("/dev/full")


def test_a_full_disk_is_not_the_fault_of_a_volume(patients: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.weights.replacing", full_disk)
    with pytest.raises(RuntimeError) as caught:
        evaluate(patients, patients / "out", "preview")
    error = cause_of(caught.value)
    assert isinstance(error, ExhaustedError)
    assert "validationA/flair.nii.gz: stopped here" in str(error) and "No space left on device" in str(error)


def test_labels_alone(patients: Path) -> None:
    """Without a mask the threshold is chosen by labels, and pixels are judged in healthy slices only."""
    changed(patients, lambda split, item: {k: v for k, v in item.items() if k != "mask"})
    record = evaluate(patients, patients / "out")
    test = record["test"]
    assert test["lesions_known_by"] is None and test["left_out"]["pixel AP"] == "no lesion is known by mask or boxes"
    assert test["left_out"]["figure"] and not (patients / "out" / "cases.png").exists()
    assert test["foreground"][OURS]["threshold_by"] == "Otsu's, without masks"
    assert set(test["foreground"][OURS]) == {
        *("threshold_by", "threshold", "healthy_area", "false_lesions", "image_auroc", "image_ap")
    }
    of_p = {"image_auroc", "image_ap", "sensitivity", "specificity", "calibration_error"}
    assert of_p == set(test["scores"][P_DISEASED])
    assert (
        (patients / "out" / "test_foreground.csv")
        .read_text()
        .splitlines()[0]
        .endswith("false pixels per healthy slice,false lesions per volume")
    )
    assert set(test["foreground"]["difference to the best baseline"]) == {"of", "to", "image_auroc"}


def test_without_validation_the_bundles_threshold_is_reported(patients: Path) -> None:
    changed(patients, lambda split, item: item if split == "test" else None)
    record = evaluate(patients, patients / "out")
    assert "validation" not in record
    found = record["test"]["foreground"]
    assert "dice_threshold" in found[SHIPPED] and OURS not in found and "dice_threshold" not in found[MEDIAN]
    assert set(found["difference to the best baseline"]) == {"of", "to", "pixel_ap", "image_auroc"}
    with pytest.raises(ValueError, match="has no 'training'"):
        items_of(str(patients / "datalist.json"), "training", needed=True)
    with pytest.raises(ValueError, match="no datalist is given"):
        items_of(None, "test")


def test_the_preview_is_evaluated_too(patients: Path) -> None:
    record = evaluate(patients, patients / "out", "preview", baselines=[])
    shipped = f"{STUDENT}, at the bundle's threshold"
    assert set(record["test"]["foreground"]) == {STUDENT, shipped}
    assert record["test"]["foreground"][shipped]["threshold"] == CALIBRATED["preview_threshold"]
    assert (
        record["test"]["left_out"]["difference to the best baseline"] == "there is no baseline, or none can be measured"
    )


def picture(folder: Path, name: str, spot: tuple[slice, slice] | None) -> str:
    """A slice of 80 x 96 pixels as a NIfTI whose first axis goes to the right, and the second to the front."""
    image = np.zeros((80, 96, 1), np.float32)
    image[10:70, 10:86] = 100 + np.linspace(-1, 1, 76)[:, None]
    if spot:
        image[spot] = 190
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(image, np.diag([2.0, 2.0, 5.0, 1.0])), path)
    return path.name


def test_boxes_of_pictures(patients: Path) -> None:
    """Brightness points into the box of one image, and into none of the other's; lesions are the boxes' area."""
    spot = (slice(20, 30), slice(40, 60))
    items = []
    for n, boxes in enumerate(([[20, 40, 30, 60]], [[50, 20, 60, 30], [20.5, 40, 30, 60]], None, [[50, 20, 60, 30]])):
        lesion = spot if boxes else None
        items.append({"image": picture(patients, f"x{n}", lesion), "label": int(boxes is not None), "subject": f"x{n}"})
        items[-1] |= {"boxes": boxes} if boxes else {}
    (patients / "datalist.json").write_text(json.dumps({"test": items}))
    record = evaluate(patients, patients / "out", "preview")
    test = record["test"]
    assert (test["lesions_known_by"], test["slices_with_boxes"], test["diseased_slices"]) == ("boxes", 3, 3)
    found = test["foreground"][MEDIAN]
    assert found["pointing"] == pytest.approx(2 / 3)
    assert found["image_auroc"] == 1 and "volume_auroc" not in found
    # 200 pixels in the first; 100 and 200 in the second; 100 in the last: of these 600 brightness marks 400, and 200 beside
    tp, fp, fn, pixels = 400, 200, 200, 4 * 60 * 76
    ap = tp / (tp + fn) * tp / (tp + fp) + fn / (tp + fn) * (tp + fn) / pixels
    assert found["pixel_ap"] == pytest.approx(ap, abs=0.01)
    shipped = test["foreground"][f"{STUDENT}, at the bundle's threshold"]
    assert "box_recall" in shipped and "box_recall" not in found


def test_truth_and_labels() -> None:
    """Boxes lie where the file's pixels do, whatever way its axes go; labels of volumes are refined by masks."""
    original = MetaTensor(torch.zeros(1, 80, 96, 1), affine=torch.diag(torch.tensor([2.0, 2, 5, 1]).double()))
    # both axes are turned round: x from 20 to 30 of 80 is from 50 to 60
    boxes = truth_of({"image": "a", "boxes": [[20, 40, 30, 60]]}, original).boxes
    assert boxes is not None and boxes.tolist() == [[50, 36, 60, 56]]
    for wrong in ([20, 40, 30], [20, 40, 20, 60], [20, 40, 30, 97], "box"):
        with pytest.raises(ValueError, match="a: a box must be"):
            truth_of({"image": "a", "boxes": [wrong]}, original)
    volume = MetaTensor(torch.zeros(1, 4, 4, 3), affine=torch.eye(4).double())
    with pytest.raises(ValueError, match="boxes are for images of one slice, it has 3"):
        truth_of({"image": "a", "boxes": [[0, 0, 1, 1]]}, volume)
    lesion = np.zeros((4, 4, 3), bool)
    lesion[0, 0, 2] = True
    for label, mask, expected in (
        (1, None, [-1, 1, 1]),
        (0, None, [-1, 0, 0]),
        (1, lesion, [-1, 0, 1]),
        (None, lesion, [-1, 0, 1]),
        ([1, -1, 0], lesion, [1, -1, 0]),
    ):
        item = {"image": "a", "label": label}
        assert slice_labels(item, volume, Truth(mask, None), [1, 2]) == expected
    with pytest.raises(ValueError, match="a: has 3 slices, but 2 labels"):
        slice_labels({"image": "a", "label": [0, 1]}, volume, Truth(None, None), [])
    for label in (1, [0, 1, -1]):
        with pytest.raises(ValueError, match="a: is labelled diseased, but its mask None marks nothing"):
            slice_labels({"image": "a", "label": label}, volume, Truth(np.zeros_like(lesion), None), [1, 2])
    with pytest.raises(ValueError, match="a: has neither label nor mask"):
        slice_labels({"image": "a"}, volume, Truth(None, None), [])


def test_masks_that_are_not_used_are_not_read_where_slices_have_no_label_of_their_own(patients: Path) -> None:
    """A label of the volume counts for all its slices then, whatever a mask would say."""
    changed(patients, lambda split, item: {**item, "label": 1 if item["subject"].endswith("A") else 0})
    for mask in patients.glob("*/seg.nii.gz"):
        mask.write_bytes(b"none")
    manifest = patients / "weights.json"
    parsed(patients, "evaluate", "calibrate", manifest=str(manifest), use_masks=False).get_parsed_content("run")
    assert set(read_manifest(manifest)["calibration"]["values"]) >= {"threshold", "temperature"}


@pytest.mark.parametrize(("masks", "read"), [(True, True), (True, False), (False, True)])
def test_calibration_by_its_config(patients: Path, masks: bool, read: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written is what inference reads; the test section is not looked at."""
    changed(patients, lambda split, item: item if split == "validation" else {**item, "image": item["subject"]})
    if not masks:
        changed(patients, lambda split, item: {k: v for k, v in item.items() if k != "mask"})
    manifest = patients / "weights.json"
    parser = parsed(
        patients,
        "evaluate",
        "calibrate",
        manifest=str(manifest),
        use_masks=read,
        **{"displayable_configs#noise_level": 100},
    )
    parser.get_parsed_content("run")
    said = capsys.readouterr().out
    content = read_manifest(manifest)["calibration"]
    # a classifier that knows nothing has no temperature to choose
    assert (
        set(content["values"]) == {"threshold", "preview_threshold", "temperature"} and "temperature: 1 stays" in said
    )
    assert set(content) == {"values", "settings", "network", "classifier", "student"}
    of_both = {
        "temperature": 1.0,
        "polarity": "hyperintense",
        "median_size": 3,
        "pixel_size": 2.4,
        "highest_intensity": 2.0,
    }
    assert content["settings"]["preview_threshold"] == of_both
    used = {"noise_level": 100, "num_fixed_point_iterations": 1}
    assert content["settings"]["threshold"].items() >= (of_both | used).items()
    assert str(manifest) in said
    assert said.count("best pooled Dice" if masks and read else "Otsu's, without masks") == 2
    # evaluated with these numbers, the bundle's threshold is the one that validation chooses
    changed(patients, lambda split, item: item if split == "validation" else None)
    path = patients / "datalist.json"
    path.write_text(path.read_text().replace('"validation"', '"test"'))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"test": content["test"]}))
    kept = len(list((patients / "cache").glob("evaluated-*")))
    record = evaluate(patients, patients / "out", manifest=str(manifest))
    assert len(list((patients / "cache").glob("evaluated-*"))) == kept == 2
    shipped = record["test"]["foreground"][SHIPPED]
    values = read_manifest(manifest)["calibration"]["values"]
    assert (shipped["threshold"], record["settings"]["temperature"]) == (values["threshold"], 1.0)
    if masks and read:
        assert shipped["dice_threshold"] == pytest.approx(shipped["dice_oracle"], abs=2e-3)


def test_another_classifiers_temperature_does_not_become_ones_own(
    patients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few patients to choose one: that of one's own classifier stays, another's goes."""
    manifest = patients / "weights.json"
    options = {"manifest": str(manifest), "displayable_configs#noise_level": 100}
    parser = parsed(patients, "evaluate", "calibrate", **options)
    parser.get_parsed_content("run")
    own = read_manifest(manifest)["calibration"]["classifier"]
    capsys.readouterr()
    for classifier, expected in ((own, 1.9), ("another", 1.0)):
        manifest.write_text(json.dumps({"calibration": {"values": {"temperature": 1.9}, "classifier": classifier}}))
        parser = parsed(patients, "evaluate", "calibrate", **options)
        parser.get_parsed_content("run")
        assert f"temperature: {expected:g} stays" in capsys.readouterr().out
        assert read_manifest(manifest)["calibration"]["values"]["temperature"] == expected


def test_the_preview_takes_the_temperature_that_the_whole_models_threshold_was_chosen_with(
    patients: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.judging.calibration.fitted_temperature", lambda *cases: 2.5)
    manifest = patients / "weights.json"
    parser = parsed(patients, "preview", "evaluate", "calibrate", manifest=str(manifest))
    parser.get_parsed_content("run")
    assert read_manifest(manifest)["calibration"]["values"]["temperature"] == 2.5
    weights = read_manifest(manifest)["calibration"]
    weights["values"] = {"temperature": 1.2, "threshold": 0.2, "preview_threshold": 0.3}
    manifest.write_text(json.dumps({"calibration": weights}))
    parser = parsed(patients, "preview", "evaluate", "calibrate", manifest=str(manifest))
    parser.get_parsed_content("run")
    assert "temperature: 1.2 stays, as the threshold of the whole model" in capsys.readouterr().out
    values = read_manifest(manifest)["calibration"]["values"]
    assert (values["temperature"], values["threshold"]) == (1.2, 0.2) and values["preview_threshold"] != 0.3


def test_an_evaluation_names_the_weights_and_says_what_does_not_belong_to_them(
    patients: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = patients / "weights.json"
    given = {"network": "n", "classifier": "c", "student": "s"}
    values = {"threshold": 0.2, "preview_threshold": 0.3, "temperature": 1.5}
    manifest.write_text(json.dumps({"calibration": {"values": values, **given}}))
    record = evaluate(patients, patients / "out", manifest=str(manifest), **{"displayable_configs#threshold": 0.2})
    assert record["warnings"] == [
        "The threshold was chosen for other networks than those in use.",
        "The temperature was chosen for another classifier than the one in use.",
    ]
    said = capsys.readouterr().out
    assert [f"WARNING: {warning}" in said for warning in record["warnings"]] == [True, True]
    assert set(record["weights"]) == {"network", "classifier", "student"} and "bundle" in record["versions"]
    assert record["settings"].items() >= {"guidance_exponent": 0, "threshold": 0.2, "temperature": 1.5}.items()


def test_calibration_leaves_out_a_volume_without_a_labelled_slice(patients: Path) -> None:
    """The temperature is that of the other volume alone."""
    apart = {"validationA": [-1, 0, 1, 1, 0, -1], "validationB": [-1] * 6}
    changed(patients, lambda split, item: item | {"label": apart.get(item["subject"], item["label"]), "mask": None})
    values = []
    for name in ("both", "one"):
        manifest = patients / f"{name}.json"
        parser = parsed(patients, "preview", "evaluate", "calibrate", manifest=str(manifest))
        parser.get_parsed_content("run")
        values.append(read_manifest(manifest)["calibration"]["values"])
        changed(patients, lambda split, item: None if item["subject"] == "validationB" else item)
    assert values[0] == values[1]
