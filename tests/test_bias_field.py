"""Shading."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.images.bias_field import PATTERN, CorrectFieldd, FittedFieldd, N4Fieldd
from scripts.images.polynomials import Polynomials
from whole_head import AFFINE as WHOLE_HEAD
from whole_head import BRAIN, HEAD, IN_MM, SHAPE, ellipsoid

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import flair_pattern

AFFINE = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0]))


def corrected(transform: CorrectFieldd, array: np.ndarray, brain: np.ndarray = BRAIN) -> dict[str, Any]:
    x = torch.from_numpy(array.astype(np.float32))[None]
    foreground = MetaTensor(torch.from_numpy(brain.astype(np.float32))[None], affine=AFFINE)
    return transform({"image": MetaTensor(x, affine=AFFINE), "foreground": foreground, "warnings": []})


def span(field: np.ndarray, inside: np.ndarray = BRAIN) -> float:
    low, high = np.percentile(field[inside], [5, 95])
    return float(high / low)


LESION = np.roll(ellipsoid(24, 24, 20), (14, 10), (0, 1))


def flair(lesion: float = 1.0) -> np.ndarray:
    """A brain as bright as FLAIR brains are by nature, two tissues, dark ventricles; the lesion is so many times as bright."""
    nature = np.exp(Polynomials.over(BRAIN).sum(np.array(PATTERN["coefficients"]), SHAPE))
    grey = np.cos(IN_MM / 7).prod(axis=0) > 0
    x = 100 * nature * np.where(grey, 1.06, 0.94) * np.random.default_rng(0).normal(1, 0.03, SHAPE)
    x[ellipsoid(12, 30, 12)] *= 0.4
    x[LESION] *= lesion
    return np.where(BRAIN, x, 0)


def coil(fold: float) -> np.ndarray:
    """A surface coil's sensitivity, which is no polynomial, from its brightest to its darkest hundredth of the brain."""
    away = sum((g - c) ** 2 for g, c in zip(IN_MM, (70, 80, 30), strict=True))
    log = -1.5 * np.log(1 + away / 80**2)
    low, high = np.percentile(log[BRAIN], [1, 99])
    return np.exp((log - np.median(log[BRAIN])) / (high - low) * np.log(fold))


@pytest.mark.parametrize("fold", [1.5, 3.0])
def test_a_coils_field_is_found_beside_a_bright_lesion(fold: float) -> None:
    plain, shaded = (corrected(FittedFieldd("image"), flair(1.6) * f) for f in (np.ones(SHAPE), coil(fold)))
    left = (shaded["bias_field"] / plain["bias_field"])[0].as_tensor().numpy() / coil(fold)
    assert span(left) < 1.04 < 1.25 < span(coil(fold))
    assert bool(shaded["warnings"]) == (fold == 3.0) and not plain["warnings"]
    for found in (plain, shaded):
        image = found["image"][0].as_tensor().numpy()
        contrast = image[LESION].mean() / np.median(image[BRAIN & ~LESION])
        true = flair(1.6)[LESION].mean() / np.median(flair()[BRAIN & ~LESION])
        assert contrast == pytest.approx(true, rel=0.04)


def test_an_even_image_is_left_nearly_as_it_is_and_the_field_brings_any_back() -> None:
    found = corrected(FittedFieldd("image"), flair())
    field = found["bias_field"][0].as_tensor().numpy()
    assert span(field) < 1.05 and np.median(field[BRAIN]) == pytest.approx(1)
    assert np.all(field[~BRAIN] == 1)
    image = found["image"]
    assert image.shape == (1, *SHAPE) and bool((image.affine == AFFINE).all())
    torch.testing.assert_close((image * found["bias_field"])[0].as_tensor().numpy(), flair().astype(np.float32))


def test_a_field_is_found_on_any_scale_and_from_few_slices_but_not_from_next_to_nothing() -> None:
    fields = [corrected(FittedFieldd("image"), s * flair())["bias_field"].as_tensor() for s in (1, 1e4)]
    torch.testing.assert_close(*fields, atol=1e-4, rtol=0)
    thin = np.zeros_like(BRAIN)
    thin[..., 14:16] = BRAIN[..., 14:16]
    few = corrected(FittedFieldd("image"), np.where(thin, flair(), 0), thin)["bias_field"][0].as_tensor().numpy()
    assert 1 <= span(few, thin) < 1.1
    speck = np.zeros_like(BRAIN)
    speck[50:53, 60:63, 14] = True
    assert bool((corrected(FittedFieldd("image"), flair(), speck)["bias_field"] == 1).all())


def test_terms_are_products_of_legendre_polynomials() -> None:
    terms = Polynomials(np.zeros(3), np.full(3, 10.0))
    assert len(terms.exponents) == len(terms.degrees) == 19 and max(terms.degrees) == 3
    # at x = 1, y = 0.5, z = 0 of -1 to 1: P1 = x, P2 = (3 x^2 - 1) / 2, P3 = (5 x^3 - 3 x) / 2
    known = [(1, 1, 1, 1), (1, 0.5, -0.125, -0.4375), (1, 0, -0.5, 0)]
    there = terms.at(np.array([[10, 7.5, 5.0]]))[0]
    for value, exponents in zip(there, terms.exponents, strict=True):
        assert value == pytest.approx(np.prod([known[axis][n] for axis, n in enumerate(exponents)]))
    c = np.arange(19.0)
    assert terms.sum(c, (11, 8, 6))[10, 7, 5] == pytest.approx(float(terms.at(np.array([[10, 7, 5.0]]))[0] @ c))


def test_the_pattern_is_that_of_the_training_volumes() -> None:
    assert PATTERN["volumes"] == 99 and len(PATTERN["coefficients"]) == 19
    # nothing lies to one side of all brains: terms odd from left to right are next to none
    exponents = Polynomials(np.zeros(3), np.ones(3)).exponents
    assert all(abs(c) < 0.025 for c, e in zip(PATTERN["coefficients"], exponents, strict=True) if e[0] % 2)
    assert json.dumps(PATTERN["span"]).count(":") == 5 and PATTERN["span"]["median"] < 1.3


@pytest.mark.parametrize("axis", [0, 1])
def test_n4_corrects_strong_shading_and_leaves_slight(axis: int) -> None:
    ramp = np.linspace(0.4, 1.8, SHAPE[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
    plain, shaded = (corrected(N4Fieldd("image"), x) for x in (HEAD, HEAD * ramp))
    assert plain["warnings"] == [] and bool((plain["bias_field"] == 1).all())
    assert "shaded" in shaded["warnings"][0]
    torch.testing.assert_close(
        (shaded["image"] * shaded["bias_field"])[0].as_tensor().numpy(), (HEAD * ramp).astype(np.float32)
    )
    # even tissue becomes even again: before, its darkest and brightest tenth differ twofold
    even = BRAIN & (HEAD > 90) & (HEAD < 110)
    low, high = np.percentile(shaded["image"][0].as_tensor().numpy()[even], [10, 90])
    assert high / low < 1.25 < 1.6 < np.divide(*np.percentile((HEAD * ramp)[even], [90, 10]))


def test_the_pattern_is_found_again_in_brains_that_have_it(tmp_path: Path) -> None:
    items = []
    for n in range(3):
        away = [coil(1.3), 1 / coil(1.3), np.ones(SHAPE)][n]
        x = (flair(1.6 if n == 0 else 1.0) * away).astype(np.float32)
        nib.save(nib.Nifti1Image(x, WHOLE_HEAD), tmp_path / f"{n}.nii.gz")
        items.append({"image": str(tmp_path / f"{n}.nii.gz"), "label": 1, "subject": str(n)})
    datalist, output = tmp_path / "datalist.json", tmp_path / "pattern.json"
    datalist.write_text(json.dumps({"training": items}))
    flair_pattern.main(str(datalist), output=str(output))
    found = json.loads(output.read_text())
    np.testing.assert_allclose(found["coefficients"], PATTERN["coefficients"], atol=0.025)
    assert found["volumes"] == 3
    assert found["span"]["least"] < 1.05 and found["span"]["most"] == pytest.approx(1.2, abs=0.1)
