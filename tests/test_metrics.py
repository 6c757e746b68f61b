"""Metrics with known answers, agreement with scikit-learn, the patient bootstrap, tables, figures and baselines."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from skimage.filters import threshold_otsu
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from scripts.judging.baselines import baselines
from scripts.judging.bootstrap import _resampled, bootstrap, paired_bootstrap
from scripts.judging.cases import Domain, SliceCase
from scripts.judging.metrics import METRICS, best_threshold, metrics
from scripts.judging.reporting import figure, table


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
    assert list(result) == list(METRICS)
    assert result["dice_threshold"] == pytest.approx(2 * 20 / (20 + false + healthy + 25))
    assert result["dice_threshold_slice"] == pytest.approx(2 * 20 / (20 + false + 25))
    assert result["dice_otsu_slice"] == pytest.approx(result["dice_threshold_slice"])  # Otsu falls below 0.5 too
    assert result["dice_oracle"] == pytest.approx(2 * 20 / (20 + 25))  # above 0.75 there is no false pixel
    assert result["healthy_area"] == healthy
    assert result["image_auroc"] == 1.0
    assert best_threshold(by_hand(), "m", domain) == 0.75


def test_a_pixel_at_the_threshold_is_not_segmented() -> None:
    assert metrics(by_hand(), "m", 0.75, "image")["healthy_area"] == 0


def test_a_slice_counts_only_above_twenty_lesion_pixels() -> None:
    case = by_hand()[0]
    case.truth[:] = False
    case.truth[:4, :5] = True
    few = metrics([case], "m", 0.4, "image")
    assert np.isnan(few["dice_threshold_slice"]) and np.isnan(few["dice_otsu_slice"])
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
    assert result["pixel_auroc"] == pytest.approx(roc_auc_score(truth, a))
    assert result["pixel_ap"] == pytest.approx(average_precision_score(truth, a))
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
    assert result["dice_oracle"] == pytest.approx(every)
    assert result["dice_threshold"] == pytest.approx(every)


def test_the_best_threshold_where_everything_is_lesion() -> None:
    case = by_hand()[0]
    case.truth[:] = True
    assert best_threshold([case], "m", "image") == -np.inf
    assert metrics([case], "m", -np.inf, "image")["dice_threshold"] == 1.0


def test_metrics_that_one_class_leaves_undefined_are_nan() -> None:
    healthy = metrics(by_hand()[1:], "m", 0.4, "foreground")
    assert {name for name, value in healthy.items() if not np.isnan(value)} == {"dice_threshold", "healthy_area"}
    assert healthy["dice_threshold"] == 0
    diseased = metrics(by_hand()[:1], "m", 0.4, "foreground")
    assert {name for name, value in diseased.items() if np.isnan(value)} == {"image_auroc", "healthy_area"}
    with pytest.raises(ValueError, match="no lesion pixel in the 1 cases"):
        best_threshold(by_hand()[1:], "m", "foreground")


@pytest.mark.parametrize("share", [0.3, 0.01])
@pytest.mark.parametrize("gain", [0.3, 3.0])
def test_ranking_from_histograms_agrees_with_sklearn(share: float, gain: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(60_000) < share
    values = np.clip(rng.normal(size=truth.size) + gain * truth, 0, None).astype(np.float32)
    case = SliceCase("a", 0, truth[None], truth[None] | True, truth[None], 1, {"m": values[None]}, {"m": 0.0})
    exact = metrics([case], "m", 1.0, "image")
    intervals = bootstrap([case, replace(case, subject="b")], "m", 1.0, "image", num_resamples=2)
    for name in ("pixel_auroc", "pixel_ap", "dice_oracle"):
        assert intervals[name][0] == pytest.approx(exact[name], abs=1e-3)


def test_a_resample_is_what_metrics_gives_for_the_drawn_subjects() -> None:
    cases = random_cases()
    resampled = _resampled(cases, "good", 0.9, "foreground", num_resamples=3, seed=7)
    draws = np.random.default_rng(7).multinomial(6, np.full(6, 1 / 6), 3)
    for i, draw in enumerate(draws):
        exact = metrics([c for c in cases for _ in range(draw[int(c.subject[1:])])], "good", 0.9, "foreground")
        for name in METRICS:
            close = 1e-3 if name in ("pixel_auroc", "pixel_ap", "dice_oracle") else 1e-12
            assert resampled[name][i] == pytest.approx(exact[name], abs=close), name


def test_identical_subjects_leave_no_uncertainty() -> None:
    cases = [replace(c, subject=s) for s in "abc" for c in random_cases(subjects=1)]
    for low, high in bootstrap(cases, "good", 0.9, "foreground", num_resamples=50).values():
        assert low == pytest.approx(high, abs=1e-12)


def test_a_perfect_and_a_hopeless_subject_span_everything() -> None:
    found, missed = by_hand()[0], replace(by_hand()[0], subject="b")
    found.maps["m"], missed.maps["m"] = found.truth.astype(np.float32), 1 - missed.truth.astype(np.float32)
    intervals = bootstrap([found, missed], "m", 0.5, "foreground")
    for name in ("dice_threshold", "dice_threshold_slice", "dice_otsu_slice", "pixel_auroc"):
        assert intervals[name] == (0, 1), name
    assert all(np.isnan(intervals["image_auroc"]))  # no healthy slice in any resample


def test_the_bootstrap_is_repeatable_and_undefined_for_one_subject() -> None:
    cases = random_cases()
    first = bootstrap(cases, "good", 0.9, "image", num_resamples=50, seed=3)
    assert first == bootstrap(cases, "good", 0.9, "image", num_resamples=50, seed=3)
    assert first != bootstrap(cases, "good", 0.9, "image", num_resamples=50, seed=4)
    assert np.isnan(list(bootstrap(cases[:4], "good", 0.9, "image", num_resamples=50).values())).all()


def test_the_paired_bootstrap_knows_which_method_is_better() -> None:
    cases = random_cases()

    def paired(a: str, b: str, metric: str = "pixel_ap") -> tuple[float, float, float]:
        return paired_bootstrap(cases, a, b, metric, 0.9, 0.9, "foreground", num_resamples=200)

    point, low, high = paired("good", "bad")
    exact = [metrics(cases, m, 0.9, "foreground")["pixel_ap"] for m in ("good", "bad")]
    assert point == pytest.approx(exact[0] - exact[1])
    assert 0 < low <= point <= high
    assert paired("bad", "good") == pytest.approx((-point, -high, -low))
    assert paired("good", "good") == (0, 0, 0)
    with pytest.raises(ValueError, match="unknown metric 'dice'; there are dice_otsu_slice"):
        paired("good", "bad", "dice")


def test_errors_say_what_is_wrong() -> None:
    cases = by_hand()
    with pytest.raises(ValueError, match="no cases"):
        metrics([], "m", 0.5, "foreground")
    with pytest.raises(ValueError, match="a, slice 3: has no map of method 'n'; it has m"):
        bootstrap(cases, "n", 0.5, "foreground")
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


def test_tables_hold_values_with_intervals(tmp_path: Path) -> None:
    values = dict.fromkeys(METRICS, 0.8124) | {"healthy_area": 12.34, "image_auroc": np.nan}
    intervals = dict.fromkeys(METRICS, (0.7412, 0.8688)) | {"healthy_area": (8.0, 15.2), "pixel_ap": (np.nan, np.nan)}
    results = {"sum |x - y|": (values, intervals), "b, c": (values, {})}
    paths = table(results, tmp_path / "test", "foreground", note="14 patients.")
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    heading, first, second = csv.reader(paths[0].read_text().splitlines())
    assert heading == ["method (pixels inside the foreground)", *METRICS.values()]
    cells = dict(zip(METRICS, first[1:], strict=True))
    assert first[0] == "sum |x - y|" and cells["dice_oracle"] == "0.812 (0.74-0.87)"
    assert cells["healthy_area"] == "12.3 (8.0-15.2)" and cells["image_auroc"] == "n/a"
    assert cells["pixel_ap"] == "0.812 (n/a)"
    assert second[:2] == ["b, c", "0.812"]
    lines = paths[1].read_text().splitlines()
    assert lines[0].startswith("| method (pixels inside the foreground) |") and "oracle" in lines[0]
    assert lines[2].startswith(r"| sum \|x - y\| | 0.812 (0.74-0.87) |")
    assert {line.replace(r"\|", "").count("|") for line in lines[:4]} == {len(METRICS) + 2}
    assert lines[-1].endswith("14 patients.")
    with pytest.raises(ValueError, match="no results"):
        table({}, tmp_path / "test", "foreground")


@pytest.mark.parametrize("subjects", [1, 3])
def test_the_figure_shows_best_median_and_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subjects: int) -> None:
    cases = random_cases(subjects=subjects, slices=2)
    cases[1].counterfactual = cases[1].image
    drawn: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr("scripts.judging.reporting.Figure", Kept)
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
    maps, scores = baselines(image, brain)
    intensity, above, filtered = maps
    assert np.array_equal(maps[intensity], image)
    assert maps[above].sum() == pytest.approx(9 * 0.5 + 0.75)
    assert scores[above][0] == pytest.approx((9 * 0.5 + 0.75) / 49)
    assert maps[filtered].sum() == pytest.approx(5 * 0.5)
    assert scores[intensity][0] == pytest.approx((49 * 0.25 + 9 * 0.5 + 0.75) / 49)
    assert all(maps[m].dtype == np.float32 and maps[m].shape == image.shape for m in maps)
    assert all(np.isnan(scores[m][1]) for m in maps)
    with pytest.raises(ValueError, match="the foreground is empty"):
        baselines(image, brain & False)
    with pytest.raises(ValueError, match=r"must both be \(H, W, D\)"):
        baselines(image[..., 0], brain[..., 0])
