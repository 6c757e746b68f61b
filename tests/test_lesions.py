"""AUPRO, AUPIMO and lesions as wholes: by hand, and against every threshold tried one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import label

from scripts.judging.bootstrap import measured
from scripts.judging.cases import Domain, SliceCase
from scripts.judging.lesions import cut
from scripts.judging.limited import FPR_RANGE, _area, shares_of
from scripts.judging.metrics import metrics


def case(truth: np.ndarray, a: np.ndarray, number: int = 0) -> SliceCase:
    """Of a patient "a", everything foreground."""
    whole = np.ones(truth.shape, bool)
    return SliceCase(
        "a", number, np.zeros(truth.shape), whole, truth, int(truth.any()), {"m": a.astype(np.float32)}, {"m": 0}
    )


def two_lesions() -> list[SliceCase]:
    """A slice with a large lesion of 16 pixels, a quarter of it seen, and a small one of 4, seen; and a healthy slice."""
    truth, a = np.zeros((10, 10), bool), np.zeros((10, 10))
    truth[:4, :4], truth[8:, 8:] = True, True
    a[0, :4], a[8:, 8:] = 1, 2
    a[5, :5] = 1  # false: 5 of all 180 healthy pixels
    false = np.zeros((10, 10))
    false[0, 0] = 2  # 1 of 100 pixels of the healthy slice
    return [case(truth, a, 3), case(truth & False, false, 4)]


def test_shares_are_of_lesions_slices_and_healthy_slices() -> None:
    diseased, healthy = two_lesions()
    shares = shares_of(diseased, "image")
    assert shares.sum(axis=0) == pytest.approx([2, 1, 0])
    assert sorted(set(shares[:, 0])) == [0, 1 / 16, 1 / 4] and sorted(set(shares[:, 1])) == [0, 1 / 20]
    np.testing.assert_allclose(shares_of(healthy, "image"), [[0, 0, 1 / 100]] * 100)


def test_areas_by_hand() -> None:
    x, y = np.array([[0, 0.5, 1.0]]), np.array([[0, 1.0, 1.0]])
    assert _area(x, y, 0, 0.3) == pytest.approx([0.3**2])
    assert _area(x, y, 0.25, 1) == pytest.approx([(0.5 + 1) / 2 * 0.25 + 0.5])
    # 2 x over the logarithm of x is 2 (high - low)
    assert _area(x, y, 0.1, 0.4, logarithmic=True) == pytest.approx([2 * 0.3])


def test_aupro_and_aupimo_by_hand() -> None:
    """Above 1: the small lesion and 1 false pixel. Above 0: a quarter of the other and 5 more. Then all."""
    found = metrics(two_lesions(), "m", 0.5, "image")
    total = 180
    curve = [(0, 0), (1 / total, 1 / 2), (6 / total, (1 + 1 / 4) / 2), (1, 1)]
    expected = 0.0
    for (x0, y0), (x1, y1) in zip(curve[:-1], curve[1:], strict=True):
        end = min(x1, 0.3)
        expected += (end - x0) * (y0 + y0 + (y1 - y0) * (end - x0) / (x1 - x0)) / 2
    assert found["aupro"] == pytest.approx(expected / 0.3)
    # of the slice's lesion 4 of 20 pixels at 1 of 100 false ones, and a line from nothing to there
    low, high = FPR_RANGE
    assert found["aupimo"] == pytest.approx(20 * (high - low) / np.log(high / low))


def brute(cases: list[SliceCase], domain: Domain) -> dict[str, float]:
    """Every threshold tried by itself, as the papers have it."""
    values = np.unique(np.concatenate([c.maps["m"][c.inside(domain)] for c in cases]))[::-1]
    aupro, aupimo = [(0.0, 0.0)], [(0.0, 0.0)]
    for value in values:
        regions, slices, healthy, false, negatives = [], [], [], 0, 0
        for c in cases:
            marked, truth = (c.maps["m"] >= value) & c.inside(domain), c.truth & c.inside(domain)
            numbers, count = label(truth, np.ones((3, 3)))
            regions += [marked[numbers == n].mean() for n in range(1, count + 1)]
            slices += [marked[truth].mean()] if truth.any() else []
            healthy += [] if c.diseased else [marked[c.inside(domain)].mean()]
            false += (marked & ~truth).sum()
            negatives += (~truth & c.inside(domain)).sum()
        aupro.append((false / negatives, np.mean(regions)))
        aupimo.append((np.mean(healthy), np.mean(slices)))
    x = np.linspace(0, 0.3, 20_001)
    of_x = np.interp(x, *np.array(aupro).T)
    log_x = np.linspace(*np.log(FPR_RANGE), 20_001)
    of_log = np.interp(np.exp(log_x), *np.array(aupimo).T)
    span = log_x[-1] - log_x[0]
    return {"aupro": np.trapz(of_x, x) / 0.3, "aupimo": np.trapz(of_log, log_x) / span}


def scattered(seed: int = 0) -> list[SliceCase]:
    rng = np.random.default_rng(seed)
    cases = []
    for n in range(8):
        truth = np.zeros((40, 40), bool)
        if n % 2:
            truth[4:9, 4:9], truth[20 : 26 + n, 20:30], truth[35, 5:8] = True, True, True
        a = np.clip(rng.normal(size=truth.shape) + 2.5 * truth, 0, None)
        cases.append(replace(case(truth, a, n), subject=f"p{n // 4}", volume=f"p{n // 4}"))
        cases[-1].foreground[:2] = False
    return cases


@pytest.mark.parametrize("domain", ["foreground", "image"])
def test_aupro_and_aupimo_are_those_of_all_thresholds(domain: Domain) -> None:
    cases = scattered()
    found, expected = metrics(cases, "m", None, domain), brute(cases, domain)
    assert found["aupro"] == pytest.approx(expected["aupro"], abs=1e-3)
    assert found["aupimo"] == pytest.approx(expected["aupimo"], abs=1e-3)
    again = measured([replace(c, subject=s) for s in "abcde" for c in cases], "m", None, domain, 2).intervals
    for name in ("aupro", "aupimo"):
        assert again[name][0] == pytest.approx(again[name][1]) == pytest.approx(found[name], abs=2e-3)


def test_lesions_are_counted_in_three_dimensions() -> None:
    """Two lesions: one through three slices, a tenth marked; one of four voxels, none marked; a fifth of two is none.

    Marks: on the first lesion, far from all through two slices, and two voxels, which are too few.
    """
    truth, a = np.zeros((3, 12, 12), bool), np.zeros((3, 12, 12))
    truth[:, 0:2, 0:5] = True  # 30 voxels
    truth[1, 10:12, 10:12], truth[2, 11, 0:2] = True, True
    a[0, 0, 0:3] = 1
    a[0:2, 6, 6], a[2, 7, 7] = 1, 1  # three that touch at corners
    a[2, 0, 10:12] = 1
    cases = [case(truth[z], a[z], z + 5) for z in range(3)]
    found = metrics(cases, "m", 0.5, "image")
    assert found["lesions_found"] == 1 / 2 and found["false_lesions"] == 1
    sizes = ("lesions_found_small", "lesions_found_medium", "lesions_found_large")
    assert not found.keys() & set(sizes)  # of a picture, nothing has a volume
    # 30 and 6 voxels of .05 ml; of a third of a ml, 10 and 2 ml
    for voxel_ml, expected in ((0.05, (0, 1, None)), (1 / 3, (None, 0, 1))):
        found = metrics([replace(c, voxel_ml=voxel_ml) for c in cases], "m", 0.5, "image")
        assert tuple(found.get(name) for name in sizes) == expected
    # with a slice left out between, a lesion's volume is not known
    gap = [replace(c, voxel_ml=0.05, slice=2 * c.slice) for c in cases]
    assert not metrics(gap, "m", 0.5, "image").keys() & set(sizes)
    a[0, 0, 2] = 0  # two of thirty are no tenth, and too few to be a mark
    cases = [case(truth[z], a[z], z + 5) for z in range(3)]
    assert metrics(cases, "m", 0.5, "image")["lesions_found"] == 0
    # a slice between that isn't evaluated parts what touches
    apart = [replace(c, slice=2 * c.slice) for c in cases]
    assert metrics(apart, "m", 0.5, "image")["false_lesions"] == 0


@pytest.mark.parametrize(
    ("judged", "expected"),
    [
        ([0, 1, 2, 3, 4, 5], False),
        ([1, 2], False),
        ([3, 4, 5], False),
        ([2, 3], True),
        ([4], True),
        ([1], True),
        ([], False),
    ],
)
def test_a_lesion_that_goes_on_in_slices_that_are_not_judged_is_cut(judged: list[int], expected: bool) -> None:
    """One in slices 1 and 2, another in 3 to 5, which don't touch."""
    truth = np.zeros((8, 8, 6), bool)
    truth[0, 0, 1], truth[1, 1, 2] = True, True  # touch at a corner
    truth[5:7, 5:7, 3:6] = True
    assert cut(truth, judged) == expected


def test_false_lesions_are_a_mean_over_volumes() -> None:
    truth, a = np.zeros((8, 8), bool), np.zeros((8, 8))
    a[0, 0:3], a[4:, 4:] = 1, 1
    cases = [replace(case(truth, a * (n < 3)), subject=name, volume=name) for n, name in enumerate("abcdef")]
    found = metrics(cases, "m", 0.5, "foreground")
    assert found["false_lesions"] == 1 and "lesions_found" not in found
    low, high = measured(cases, "m", 0.5, "foreground").intervals["false_lesions"]
    assert (low, high) == (0, 2)
