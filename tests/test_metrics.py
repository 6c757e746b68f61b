"""Metrics with known answers, agreement with scikit-learn, the patient bootstrap, tables, figures and baselines."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from skimage.filters import threshold_multiotsu, threshold_otsu
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from scripts.judging.baselines import Baseline, BrighterThanMedian, Brightness
from scripts.judging.bootstrap import LEAST_PATIENTS, interval, measured, measured_decisions, measured_scores
from scripts.judging.cases import Domain, SliceCase
from scripts.judging.figure import figure
from scripts.judging.metrics import METRICS, metrics
from scripts.judging.ranking import NUM_KEYS, above, keys
from scripts.judging.readings import COUNTERFACTUAL, OURS
from scripts.judging.reporting import write_rows
from scripts.judging.rows import Threshold
from scripts.judging.scored import Scored
from scripts.judging.tables import left_out, said, table
from scripts.judging.thresholds import BY_MASKS, best_threshold, chosen_threshold, label_threshold


def by_hand() -> list[SliceCase]:
    """Two slices of 8 x 8, brain in the first six rows: 25 lesion pixels, of which 20 are found, and 6 false ones."""
    brain = np.zeros((8, 8), bool)
    brain[:6] = True
    truth = np.zeros((8, 8), bool)
    truth[:5, :5] = True
    a = np.zeros((8, 8), np.float32)
    a[:4, :5] = 1.0  # 20 true
    a[:4, 5] = 0.5  # 4 false inside the foreground
    a[7, :2] = 0.5  # 2 false outside
    false = np.zeros((8, 8), np.float32)
    false[2, 2:5], false[7, 7] = 0.75, 0.75
    empty = np.zeros((8, 8), bool)
    return [
        SliceCase("a", 3, np.zeros((8, 8)), brain, truth, 1, {"m": a}, {"m": 2.0}),
        SliceCase("b", 5, np.zeros((8, 8)), brain, empty, 0, {"m": false}, {"m": 1.0}),
    ]


def random_cases(subjects: int = 6, slices: int = 4, size: int = 24, seed: int = 0) -> list[SliceCase]:
    """Every other slice has a lesion; "good" sees it better than "bad"; half of the pixels of both are exactly 0."""
    rng = np.random.default_rng(seed)
    brain = np.zeros((size, size), bool)
    brain[2:-2, 2:-2] = True
    cases = []
    for s in range(subjects):
        for z in range(slices):
            truth = np.zeros((size, size), bool)
            if z % 2:
                truth[4 : 10 + s % 3, 5:11] = True
            maps = {
                name: np.clip(rng.normal(size=truth.shape) + gain * truth, 0, None).astype(np.float32)
                for name, gain in (("good", 2.0), ("bad", 0.7))
            }
            scores = {name: float(a.mean()) for name, a in maps.items()}
            cases.append(SliceCase(f"p{s}", z, rng.normal(size=truth.shape), brain, truth, z % 2, maps, scores))
    return cases


def pooled(cases: list[SliceCase], method: str, domain: Domain) -> tuple[np.ndarray, np.ndarray]:
    a = np.concatenate([c.maps[method][c.inside(domain)] for c in cases])
    return a, np.concatenate([c.truth[c.inside(domain)] for c in cases])


@pytest.mark.parametrize(("domain", "false", "healthy"), [("foreground", 4, 3), ("image", 6, 4)])
def test_metrics_of_a_slice_done_by_hand(domain: Domain, false: int, healthy: int) -> None:
    result = metrics(by_hand(), "m", 0.4, domain)
    assert list(result) == [
        m for m in METRICS if not m.startswith(("pointing", "box", "volume", "dice_threshold_v", "lesions_found_"))
    ]
    assert result["dice_threshold"] == pytest.approx(2 * 20 / (20 + false + healthy + 25))
    assert result["dice_threshold_slice"] == pytest.approx(2 * 20 / (20 + false + 25))
    assert result["iou_threshold_slice"] == pytest.approx(20 / (20 + false + 25 - 20))
    assert result["dice_otsu_slice"] == pytest.approx(result["dice_threshold_slice"])  # Otsu falls below 0.5 too
    assert result["dice_oracle"] == pytest.approx(2 * 20 / (20 + 25))  # above 0.75 there is no false pixel
    assert result["healthy_area"] == healthy
    assert result["image_auroc"] == result["image_ap"] == 1.0
    # just above 0.75, which the best segmentation leaves out
    assert 0.75 <= best_threshold(by_hand(), "m", domain) < 0.7501


def test_a_pixel_at_the_threshold_is_not_segmented() -> None:
    assert metrics(by_hand(), "m", 0.75, "image")["healthy_area"] == 0


def test_a_slice_counts_only_above_twenty_lesion_pixels() -> None:
    case = by_hand()[0]
    case.truth[:] = False
    case.truth[:4, :5] = True
    few = metrics([case], "m", 0.4, "image")
    assert "dice_threshold_slice" not in few and "dice_otsu_slice" not in few
    assert few["dice_threshold"] == pytest.approx(2 * 20 / (26 + 20))
    case.truth[4, 0] = True
    assert metrics([case], "m", 0.4, "image")["dice_threshold_slice"] == pytest.approx(2 * 20 / (26 + 21))


def test_otsu_of_a_constant_map_segments_nothing() -> None:
    case = by_hand()[0]
    case.maps["m"] = np.full((8, 8), 3.0, np.float32)
    assert metrics([case], "m", 0.4, "foreground")["dice_otsu_slice"] == 0


@pytest.mark.parametrize("domain", ["foreground", "image"])
def test_metrics_agree_with_sklearn(domain: Domain) -> None:
    cases = random_cases()
    a, truth = pooled(cases, "good", domain)
    result = metrics(cases, "good", 0.9, domain)
    assert result["pixel_auroc"] == pytest.approx(roc_auc_score(truth, a), abs=1e-4)
    assert result["pixel_ap"] == pytest.approx(average_precision_score(truth, a), abs=1e-4)
    assert result["dice_threshold"] == pytest.approx(f1_score(truth, a > 0.9))
    slices = [pooled([c], "good", domain) for c in cases if c.diseased]
    assert result["dice_threshold_slice"] == pytest.approx(np.mean([f1_score(t, a > 0.9) for a, t in slices]))
    by_otsu = [f1_score(t, a > threshold_otsu(a)) for a, t in slices]
    assert result["dice_otsu_slice"] == pytest.approx(np.mean(by_otsu))
    scores, diseased = [c.scores["good"] for c in cases], [c.diseased for c in cases]
    assert result["image_auroc"] == pytest.approx(roc_auc_score(diseased, scores))


def test_the_oracle_is_the_best_of_all_thresholds_and_its_threshold_gives_it() -> None:
    cases = random_cases(subjects=1, slices=2, size=16)
    a, truth = pooled(cases, "good", "foreground")
    every = max(f1_score(truth, a > t) for t in np.unique(a))
    result = metrics(cases, "good", best_threshold(cases, "good", "foreground"), "foreground")
    assert result["dice_oracle"] == pytest.approx(every, abs=1e-3)
    assert result["dice_threshold"] == pytest.approx(result["dice_oracle"])


def test_the_best_threshold_where_everything_is_lesion() -> None:
    case = by_hand()[0]
    case.truth[:] = True
    assert best_threshold([case], "m", "image") == -np.inf
    assert metrics([case], "m", -np.inf, "image")["dice_threshold"] == 1.0


def test_scores_are_resampled_as_maps_are() -> None:
    cases = random_cases()
    scored = Scored("good")
    for case in cases:
        scored.add(case)
    alone, with_maps = measured_scores(scored, 200), measured(cases, "good", None, "foreground", 200)
    assert alone.values == {m: with_maps.values[m] for m in ("image_auroc", "image_ap")}
    assert alone.intervals == {m: with_maps.intervals[m] for m in alone.values}


def test_what_a_score_decides_by_hand() -> None:
    """Three of four diseased slices are above a half, one of two healthy ones; a value of a half is not above it."""
    scored = Scored("p")
    of_slices = [("a", 1, 0.9), ("a", 1, 0.6), ("b", 1, 0.7), ("b", 0, 0.5), ("c", 1, 0.5), ("c", 0, 0.8)]
    for subject, diseased, score in of_slices:
        scored.slices.add(subject, diseased, score)
    found = measured_decisions(scored, 0.5)
    assert found.values == {"sensitivity": 0.75, "specificity": 0.5} and not found.intervals  # three patients
    for n in range(3):
        scored.slices.add(f"d{n}", 1, 0.9)
    found = measured_decisions(scored, 0.5)
    low, high = found.intervals["sensitivity"]
    assert found.values["sensitivity"] == pytest.approx(6 / 7) and low < 6 / 7 < high == 1
    assert "specificity" not in found.intervals  # two patients have a healthy slice
    for n in range(3):
        scored.slices.add(f"d{n}", 0, 0.1)
    specificity = measured_decisions(scored, 0.5).resampled["specificity"]
    assert specificity.patients == 5 and np.nanmax(specificity.values) == 1
    healthy = Scored("p")
    healthy.slices.add("a", 0, 0.1)
    assert measured_decisions(healthy, 0.5).values == {"specificity": 1.0}


def test_metrics_that_one_class_leaves_undefined_are_left_out() -> None:
    assert set(metrics(by_hand()[1:], "m", 0.4, "foreground")) == {"healthy_area", "false_lesions"}
    needs_no_threshold = {"dice_otsu_slice", "dice_oracle", "pixel_auroc", "pixel_ap", "aupro"}
    needs_one = {"dice_threshold", "dice_threshold_slice", "iou_threshold_slice", "lesions_found", "false_lesions"}
    assert set(metrics(by_hand()[:1], "m", 0.4, "foreground")) == needs_no_threshold | needs_one
    assert set(metrics(by_hand()[:1], "m", None, "foreground")) == needs_no_threshold
    with pytest.raises(ValueError, match="no lesion pixel is known in these cases"):
        best_threshold(by_hand()[1:], "m", "foreground")
    reasons = left_out(
        {"a"}, {"a": ("A", "never"), "b": ("B", "no box"), "c": ("C", "no box"), "d": ("D", "one class")}
    )
    assert said(reasons) == "Left out: B, C (no box); D (one class)." and said({}) == ""


def test_without_masks_labels_choose_the_threshold() -> None:
    """As Otsu's method does on all pixels at once; a diseased slice without mask counts for its score alone."""
    cases = random_cases()
    a = np.concatenate([c.maps["good"][c.foreground] for c in cases if c.diseased])
    assert label_threshold(cases, "good") == pytest.approx(threshold_otsu(a), rel=1e-6)
    assert label_threshold(cases, "good", classes=3) == pytest.approx(threshold_multiotsu(a, 3)[0], rel=1e-6)
    by_labels = label_threshold(cases, "good"), "Otsu's, without masks"
    assert chosen_threshold(cases, "good", "image", use_masks=False) == by_labels
    for case in cases:
        case.truth = None if case.diseased else case.truth
    assert chosen_threshold(cases, "good", "image") == by_labels
    found = metrics(cases, "good", 0.9, "foreground")
    assert set(found) == {
        "healthy_area",
        "false_lesions",
        "image_auroc",
        "image_ap",
    }  # every volume has a diseased slice
    assert chosen_threshold([c for c in cases if not c.diseased], "good", "image") is None
    with pytest.raises(ValueError, match="no slice is labelled diseased"):
        label_threshold([c for c in cases if not c.diseased], "good")


def test_a_mean_of_maps_has_three_classes() -> None:
    """Nothing marked, marked by some maps, by all: without masks, what only some mark is marked too."""
    values = np.repeat([0.0, 0.3, 0.4, 1.0], (300, 20, 20, 60)).reshape(20, 20).astype(np.float32)
    maps = {OURS: values, COUNTERFACTUAL: values}
    case = SliceCase("a", 0, values, np.ones((20, 20), bool), None, 1, maps, dict.fromkeys(maps, 1.0))
    chosen = {name: (chosen_threshold([case], name, "foreground") or (None,))[0] for name in maps}
    assert 0 < chosen[OURS] < 0.3 and 0.4 < chosen[COUNTERFACTUAL] < 1
    case.maps[OURS] = (values > 0.5).astype(np.float32)
    assert 0 <= label_threshold([case], OURS, classes=3) < 1  # two values can't be three classes


def test_some_masks_count_where_others_are_unknown() -> None:
    cases = random_cases()
    known = [c for c in cases if not (c.diseased and c.subject in ("p0", "p1"))]
    expected = metrics(known, "good", 0.9, "foreground")
    for case in cases:
        case.truth = case.truth if case in known else None
    found = metrics(cases, "good", 0.9, "foreground")
    for name in ("dice_threshold", "pixel_ap", "pixel_auroc", "healthy_area"):
        assert found[name] == expected[name]


def test_boxes_by_hand() -> None:
    """The map's highest pixel lies in the first of two boxes, a twelfth of the second is marked: half of them are found."""
    a = np.zeros((8, 8), np.float32)
    a[1, 1], a[5, 5], a[7, 0] = 3.0, 1.0, 9.0
    boxes = np.array([[0, 0, 3, 3], [4, 4, 7, 8]])
    inside = np.ones((8, 8), bool)
    inside[7] = False  # the highest of all lies outside
    case = SliceCase("a", 0, a, inside, None, 1, {"m": a}, {"m": 1.0}, boxes=boxes)
    assert case.in_boxes().sum(axis=(1, 2)).tolist() == [9, 12]
    found = metrics([case], "m", 0.5, "foreground")
    assert found == {"pointing": 1.0, "box_recall": 0.5}
    a[6, 7] = 4.0
    assert metrics([case], "m", 3.5, "foreground") == {"pointing": 1.0, "box_recall": 0.0}
    a[3, 3] = 5.0
    assert metrics([case], "m", 0.5, "foreground") == {"pointing": 0.0, "box_recall": 1.0}
    a[0, 0], a[0, 1], a[3, 4] = 5.0, 5.0, 5.0  # of four highest pixels two lie in a box
    assert metrics([case], "m", 0.5, "foreground")["pointing"] == 0.5
    a[:] = 2.0  # a map that is the same everywhere points nowhere
    assert metrics([case], "m", 0.5, "foreground") == {"pointing": 0.0, "box_recall": 1.0}
    case.truth = case.in_boxes().any(axis=0)
    assert metrics([case], "m", 0.5, "image")["dice_threshold"] == pytest.approx(2 * 21 / (21 + 64))


def test_volumes_by_hand() -> None:
    """Two of a patient's volumes: the highest score counts, and Dice is that of all of a volume's slices."""
    found, other = by_hand()
    more = replace(found, slice=4, maps={"m": np.zeros((8, 8), np.float32)}, scores={"m": 0.0})
    second = replace(other, subject="a", volume="a2")
    third = replace(other, subject="a", volume="a2", slice=6, scores={"m": 3.0})
    result = metrics([found, more, second, third], "m", 0.4, "foreground")
    assert result["dice_threshold_volume"] == pytest.approx(2 * 20 / (24 + 2 * 25))
    assert result["volume_auroc"] == 0 and result["volume_ap"] == 0.5
    assert result["image_auroc"] == pytest.approx(0.25)


def test_keys_keep_the_order_of_values() -> None:
    """A threshold above a key leaves out what has it and nothing else, to the last bit of float32."""
    values = np.array([-1e9, -1, -1e-3, -1e-9, -0.0, 0.0, 1e-9, 1e-3, 0.349, 0.3491, 1, 2, 1e9], np.float32)
    found = keys(values)
    assert (np.diff(found) >= 0).all() and found[4] == found[5] == found[6] and found[3] == found[4] - 1
    assert len(np.unique(found)) == len(values) - 2 and found.min() == 0 and found.max() == NUM_KEYS - 1
    rng = np.random.default_rng(0)
    many = (rng.normal(size=2000) * 10.0 ** rng.integers(-6, 2, 2000)).astype(np.float32)
    many = np.unique(np.concatenate([many, np.nextafter(many, np.float32(np.inf)), np.zeros(1, np.float32)]))
    of_many = keys(many)
    assert (np.diff(of_many) >= 0).all()
    for value in np.concatenate([many[::37], values[3:6]]):
        key = int(keys(value[None])[0])
        np.testing.assert_array_equal(many > above(key), of_many > key)
        # nearly the same value counts as the same
        assert abs(above(key) - value) <= max(abs(value) / 2**13, 2**-20 * 1.001)


@pytest.mark.parametrize("share", [0.3, 0.01])
@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_ranking_from_histograms_agrees_with_sklearn(share: float, gain: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(60_000) < share
    values = np.clip(rng.normal(size=truth.size) + gain * truth, 0, None).astype(np.float32)
    case = SliceCase("a", 0, truth[None], truth[None] | True, truth[None], 1, {"m": values[None]}, {"m": 0.0})
    exact = metrics([case], "m", 1.0, "image")
    five = [replace(case, subject=subject) for subject in "abcde"]
    intervals = measured(five, "m", 1.0, "image", num_resamples=2).intervals
    for name in ("pixel_auroc", "pixel_ap", "dice_oracle"):
        assert intervals[name][0] == pytest.approx(exact[name], abs=1e-3)


def test_a_resample_is_what_metrics_gives_for_the_drawn_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.judging.bootstrap.LEAST_PATIENTS", 1)  # boxes have two patients
    # the lesions are of 0.36 to 48 ml
    cases = [
        replace(c, volume=f"{c.subject}-{c.slice // 2}", voxel_ml=10.0 ** (int(c.subject[1]) % 3 - 2))
        for c in random_cases()
    ]
    cases[0].boxes, cases[1].boxes, cases[9].boxes = None, np.array([[4, 5, 10, 11]]), np.array([[0, 0, 5, 5]])
    resampled = measured(cases, "good", 0.9, "foreground", num_resamples=3, seed=7).resampled
    assert set(resampled) == set(METRICS) - {"volume_auroc", "volume_ap"}  # every volume has a diseased slice
    draws = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), 3)
    for i, draw in enumerate(draws):
        drawn = [replace(c, volume=f"{c.volume} {n}") for c in cases for n in range(draw[int(c.subject[1:])])]
        drawn.sort(key=lambda c: c.volume)
        exact = metrics(drawn, "good", 0.9, "foreground")
        for name in exact:
            close = 1e-3 if name in ("pixel_auroc", "pixel_ap", "dice_oracle", "aupro", "aupimo") else 1e-9
            assert resampled[name].values[i] == pytest.approx(exact[name], abs=close), name


def test_identical_subjects_leave_no_uncertainty() -> None:
    cases = [replace(c, subject=s) for s in "abcde" for c in random_cases(subjects=1)]
    for low, high in measured(cases, "good", 0.9, "foreground", num_resamples=50).intervals.values():
        assert low == pytest.approx(high, abs=1e-12)


def test_perfect_and_hopeless_subjects_span_everything() -> None:
    cases = [replace(by_hand()[0], subject=subject) for subject in "abcde"]
    for n, case in enumerate(cases):
        found = case.truth.astype(np.float32)
        case.maps = {"m": found if n < 3 else 1 - found}
    intervals = measured(cases, "m", 0.5, "foreground").intervals
    for name in ("dice_threshold", "dice_threshold_slice", "dice_otsu_slice", "pixel_auroc"):
        assert intervals[name] == (0, 1), name
    assert "image_auroc" not in intervals  # no healthy slice in any resample


@pytest.mark.parametrize("patients", [5, 7, 14])
def test_an_interval_of_few_patients_holds_the_truth_about_as_often_as_it_says(patients: int) -> None:
    """Means of normal numbers. The plain percentile interval holds it in .84, .87 and .92 of the cases."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(1000, patients))
    weights = rng.multinomial(patients, np.full(patients, 1 / patients), 1000) / patients
    bounds = np.array([interval(weights @ draw, patients) for draw in draws])
    held = ((bounds[:, 0] <= 0) & (bounds[:, 1] >= 0)).mean()
    assert held == pytest.approx({5: 0.91, 7: 0.95, 14: 0.95}[patients], abs=0.02)


def test_the_bootstrap_is_repeatable_and_undefined_for_few_subjects() -> None:
    cases = random_cases()
    first, again, other = (
        measured(cases, "good", 0.9, "image", num_resamples=50, seed=seed).intervals for seed in (3, 3, 4)
    )
    assert first == again != other
    assert len({c.subject for c in cases}) == 6
    few = [c for c in cases if c.subject in ("p0", "p1", "p2", "p3")]
    assert measured(few, "good", 0.9, "image", num_resamples=50).intervals == {}


def patients_with_lesions(lesions: int, healthy: int) -> list[SliceCase]:
    """Patients with a diseased slice that has a mask and a box, others with healthy slices alone; a volume a patient."""
    diseased, other = by_hand()
    diseased.boxes = np.array([[0, 0, 5, 5]])
    cases = []
    for name in (*(f"l{n}" for n in range(lesions)), *(f"h{n}" for n in range(healthy))):
        of_patient = (diseased, other) if name[0] == "l" else (other, other)
        cases += [replace(c, subject=name, volume=name, slice=z, voxel_ml=0.001) for z, c in enumerate(of_patient)]
    return cases


@pytest.mark.parametrize(("lesions", "healthy"), [(1, 5), (4, 4), (5, 3), (6, 5)])
def test_an_interval_is_of_the_patients_that_a_metric_rests_on(lesions: int, healthy: int) -> None:
    """All have a healthy slice, some a lesion; of volumes, the rarer class counts."""
    found = measured(patients_with_lesions(lesions, healthy), "m", 0.4, "image", num_resamples=50)
    expected = dict.fromkeys(METRICS, lesions)
    expected |= dict.fromkeys(("healthy_area", "false_lesions"), lesions + healthy)
    expected |= dict.fromkeys(("volume_auroc", "volume_ap"), min(lesions, healthy))
    there = {name: number for name, number in expected.items() if name in found.values}
    assert set(METRICS) - set(there) == {"lesions_found_medium", "lesions_found_large"}
    enough = {name: number for name, number in there.items() if number >= LEAST_PATIENTS}
    assert {name: resampled.patients for name, resampled in found.resampled.items()} == enough
    assert set(found.intervals) == set(enough)
    assert (found.minus(found, "pixel_ap") is None) == (lesions < LEAST_PATIENTS)


@pytest.mark.parametrize(("diseased", "healthy"), [(1, 5), (5, 4), (5, 5)])
def test_what_scores_decide_and_rank_rests_on_the_patients_of_a_class(diseased: int, healthy: int) -> None:
    scored = Scored("p")
    for n in range(diseased + healthy):
        scored.slices.add(f"{n}", int(n < diseased), 0.1 * n)
    enough = {m for m, n in (("sensitivity", diseased), ("specificity", healthy)) if n >= LEAST_PATIENTS}
    found = measured_decisions(scored, 0.5)
    assert set(found.intervals) == enough and set(found.values) == {"sensitivity", "specificity"}
    of_ranks = {"image_auroc", "image_ap"}
    assert set(measured_scores(scored).intervals) == (of_ranks if len(enough) == 2 else set())


def test_an_interval_is_as_wide_as_its_patients_ask_for() -> None:
    """Of five with a lesion among fifty it is Student's t of five."""
    cases = patients_with_lesions(5, 45)
    for n, case in enumerate(c for c in cases if c.diseased):
        case.maps = {"m": case.maps["m"] * (n < 3)}
    found = measured(cases, "m", 0.4, "image")
    resampled = found.resampled["dice_threshold"]
    assert resampled.patients == 5
    assert found.intervals["dice_threshold"] == interval(resampled.values, 5) != interval(resampled.values, 50)


def test_the_paired_bootstrap_knows_which_method_is_better() -> None:
    cases = random_cases()

    found = {m: measured(cases, m, 0.9, "foreground", num_resamples=200) for m in ("good", "bad")}

    def paired(a: str, b: str) -> tuple[float, float, float]:
        difference = found[a].minus(found[b], "pixel_ap")
        assert difference is not None
        return difference

    point, low, high = paired("good", "bad")
    exact = [metrics(cases, m, 0.9, "foreground")["pixel_ap"] for m in ("good", "bad")]
    assert point == pytest.approx(exact[0] - exact[1])
    assert 0 < low <= point <= high
    assert paired("bad", "good") == pytest.approx((-point, -high, -low))
    assert paired("good", "good") == (0, 0, 0)
    alone = measured(cases[:4], "good", 0.9, "foreground")
    assert alone.minus(alone, "pixel_ap") is None
    with pytest.raises(ValueError, match="unknown metric 'dice'; there are dice_otsu_slice"):
        alone.minus(alone, "dice")


def test_errors_say_what_is_wrong() -> None:
    cases = by_hand()
    with pytest.raises(ValueError, match="no cases"):
        metrics([], "m", 0.5, "foreground")
    with pytest.raises(ValueError, match="a, slice 3: has no map of method 'n'; it has m"):
        measured(cases, "n", 0.5, "foreground")
    with pytest.raises(ValueError, match="domain must be 'foreground' or 'image', got 'head'"):
        metrics(cases, "m", 0.5, "head")  # type: ignore[arg-type]
    cases[1].maps["m"][0, 0] = np.nan
    with pytest.raises(ValueError, match="b, slice 5: the map of 'm' holds NaN"):
        metrics(cases, "m", 0.5, "foreground")
    cases = by_hand()
    del cases[0].scores["m"]
    with pytest.raises(ValueError, match="a, slice 3: has no finite image-level score of method 'm'"):
        metrics(cases, "m", 0.5, "foreground")
    image, yes, no = np.zeros((8, 8)), np.ones((8, 8), bool), np.zeros((8, 8), bool)
    with pytest.raises(ValueError, match="a, slice 3: its foreground is empty"):
        SliceCase("a", 3, image, no, no, 0)
    with pytest.raises(ValueError, match=r"m has shape \(8, 7\), the image \(8, 8\)"):
        SliceCase("a", 3, image, yes, no, 0, {"m": np.zeros((8, 7))})
    with pytest.raises(ValueError, match="diseased must be 0 or 1, got 2"):
        SliceCase("a", 3, image, yes, no, 2)
    with pytest.raises(ValueError, match="a, slice 3: is labelled healthy but has 64 lesion pixels"):
        SliceCase("a", 3, image, yes, yes, 0)
    with pytest.raises(ValueError, match="a, slice 3: is labelled healthy but has 1 boxes"):
        SliceCase("a", 3, image, yes, None, 0, boxes=np.array([[0, 0, 1, 1]]))


def test_tables_hold_values_with_intervals(tmp_path: Path) -> None:
    columns = {name: heading for name, (heading, _) in METRICS.items() if name != "image_auroc"}
    values = dict.fromkeys([m for m in columns if m != "pointing"], 0.8124) | {
        "healthy_area": 12.34,
        "image_auroc": 1.0,
    }
    intervals = dict.fromkeys(values, (0.7412, 0.8688)) | {"healthy_area": (8.0, 15.2)}
    del intervals["pixel_ap"]
    results = {"sum |x - y|": (values, intervals), "b, c": ({"dice_otsu_slice": 0.8124, "pixel_ap": -np.inf}, {})}
    paths = table(results, tmp_path / "test", "method (pixels)", columns, note="14 patients.")
    del columns["pointing"]  # nothing has it
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    heading, first, second = csv.reader(paths[0].read_text().splitlines())
    assert heading == ["method (pixels)", *columns.values()]
    cells = dict(zip(columns, first[1:], strict=True))
    assert first[0] == "sum |x - y|" and cells["dice_oracle"] == "0.812 (0.74-0.87)"
    assert cells["healthy_area"] == "12.3 (8.0-15.2)"
    assert cells["pixel_ap"] == "0.812"
    assert second[:3] == ["b, c", "0.812", ""] and second[heading.index("pixel AP")] == "none"
    lines = paths[1].read_text().splitlines()
    assert lines[0].startswith("| method (pixels) |") and "oracle" in lines[0]
    assert lines[2].startswith(r"| sum \|x - y\| | 0.812 (0.74-0.87) |")
    assert {line.replace(r"\|", "").count("|") for line in lines[:4]} == {len(columns) + 2}
    assert lines[-1].endswith("14 patients.")
    with pytest.raises(ValueError, match="no results"):
        table({}, tmp_path / "test", "method", columns)


def test_a_threshold_that_marks_everything_is_not_none(tmp_path: Path) -> None:
    """Nor is it one that wasn't chosen, in table and record."""
    cases = by_hand()
    rows = {
        "all": Threshold("m", -np.inf, BY_MASKS),
        "some": Threshold("m", 0.4, BY_MASKS),
        "not chosen": Threshold("m", None, "none"),
    }
    record: dict[str, Any] = {"left_out": {}, "lesions_known_by": "masks", "diseased_slices_with_unknown_lesion": 0}
    found = {name: measured(cases, "m", row.value, "foreground") for name, row in rows.items()}
    write_rows(rows, found, "foreground", tmp_path / "table", record)
    cells = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["threshold"] for row in cells] == ["all", "0.400", ""]
    assert [row["Dice pooled"] for row in cells] == ["0.413", "0.769", ""]
    of_rows = json.loads(json.dumps(record["foreground"], allow_nan=False))
    assert [row.get("threshold", "nothing") for row in of_rows.values()] == ["all", 0.4, "nothing"]


@pytest.mark.parametrize("subjects", [1, 3])
def test_the_figure_shows_best_median_and_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subjects: int) -> None:
    cases = random_cases(subjects=subjects, slices=2)
    cases[1].counterfactual = cases[1].image
    drawn: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr("scripts.judging.figure.Figure", Kept)
    figure(cases, "good", 0.9, tmp_path / "cases.png")
    assert [p.name for p in tmp_path.iterdir()] == ["cases.png"]
    assert (tmp_path / "cases.png").read_bytes().startswith(b"\x89PNG")
    labels = [ax.get_ylabel() for ax in drawn[0].axes if "Dice" in ax.get_ylabel()]
    dice = sorted(f1_score(c.truth[c.foreground], c.maps["good"][c.foreground] > 0.9) for c in cases if c.diseased)[
        ::-1
    ]
    places = ["Best"] if subjects == 1 else ["Best", "Median", "Worst"]
    assert [label.splitlines()[0] for label in labels] == [
        f"{place}: Dice {d:.2f}" for place, d in zip(places, dice, strict=True)
    ]
    assert drawn[0].get_supxlabel() == "Not for clinical use"
    with pytest.raises(ValueError, match="no diseased slice has more than 20 lesion pixels"):
        figure(cases[:1], "good", 0.9, tmp_path / "none.png")


def test_baselines_by_hand() -> None:
    brain = np.zeros((9, 9, 2), bool)
    brain[1:8, 1:8, 0] = True
    image = np.full((9, 9, 2), -1.0, np.float32)
    image[brain] = 0.25
    image[2:5, 2:5, 0] = 0.75  # nine bright pixels, of which the filter takes the corners
    image[6, 6, 0] = 1.0  # a speck, which it takes as a whole
    both = np.stack([np.zeros_like(image), image])
    names = ["T1", "FLAIR"]
    made: list[Baseline] = [Brightness(names, 1), BrighterThanMedian(names, 1), BrighterThanMedian(names, 1, 3)]
    assert [b.name for b in made] == [
        "FLAIR intensity",
        "FLAIR minus slice median",
        "FLAIR minus slice median, 3x3 median",
    ]
    intensity, difference, filtered = (b(both, brain) for b in made)
    assert np.array_equal(intensity, image)
    assert difference.sum() == pytest.approx(9 * 0.5 + 0.75)
    assert filtered.sum() == pytest.approx(5 * 0.5)
    assert all(a.dtype == np.float32 and a.shape == image.shape for a in (intensity, difference, filtered))
    with pytest.raises(ValueError, match=r"image must be \(C, H, W, D\)"):
        made[1](image, brain)
