"""The true voxel size of TCGA-LGG's slices, by registration to the same brains in BraTS, whose millimetres are true.

    python benchmarks/pixel_size.py --dataset_dir BRAIN_MR --brats_dir BRATS

The public slices (Buda et al. 2019) carry no voxel size. Thirteen of their patients are in BraTS too. For each, the FLAIR with
its nominal header is registered to BraTS' FLAIR by an affine transform. First it is brain to brain, by correlation. Then it is
the whole head inside BraTS' brain alone, by mutual information, so that no brain mask's extent decides. How the transform
stretches the axes of the nominal voxel gives its true size. Writes benchmarks/pixel_size.json. No network runs.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import median
from typing import Any

import fire
import numpy as np
import SimpleITK as sitk
from keeping import ROOT

from scripts.files import write

STARTS = ((1.1, 1.1, 1.0), (1.25, 1.25, 1.0), (1.25, 1.25, 1.3))
"""Ratios of nominal to true voxel sizes to start from, as one start can end in a wrong optimum."""


def _method(step: float, accuracy: float, levels: tuple[int, ...]) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(step, accuracy, 400, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([float(n) if n > 1 else 0.0 for n in levels])
    return method


def _centre(brain: sitk.Image) -> np.ndarray:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.Cast(brain > 0, sitk.sitkUInt8))
    return np.array(shape.GetCentroid(1))


def true_voxel_size(fixed: sitk.Image, head: sitk.Image, brain: sitk.Image) -> tuple[list[float], float]:
    """The voxel size of `head` in mm along its three axes, and the mutual information that was reached.

    Args:
        fixed: the same brain, 0 outside it, float32, with its true voxel size.
        head: float32, with nominal voxel sizes.
        brain: its brain mask, on its grid.
    """
    inside = head * sitk.Cast(brain > 0, sitk.sitkFloat32)
    found = []
    for scale in STARTS:
        transform = sitk.AffineTransform(3)
        transform.SetMatrix(np.diag(scale).ravel().tolist())
        transform.SetCenter(_centre(fixed).tolist())
        transform.SetTranslation((_centre(inside) - _centre(fixed)).tolist())
        method = _method(1.0, 1e-4, (4, 2, 1))
        method.SetMetricAsCorrelation()
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(0.2, 1)
        method.SetInitialTransform(transform, True)
        method.Execute(fixed, inside)
        found.append((method.GetMetricValue(), transform))
    transform = min(found, key=lambda f: f[0])[1]
    method = _method(0.5, 1e-5, (2, 1))
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(sitk.BinaryErode(sitk.Cast(fixed > 0, sitk.sitkUInt8), [1, 1, 1]))
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.5, 1)
    method.SetInitialTransform(transform, True)
    method.Execute(fixed, head)
    # the transform takes true millimetres to nominal ones
    to_true = np.linalg.inv(np.array(transform.GetMatrix()).reshape(3, 3))
    size = np.linalg.norm(to_true @ np.array(head.GetDirection()).reshape(3, 3), axis=0) * head.GetSpacing()
    return [round(float(s), 3) for s in size], round(-float(method.GetMetricValue()), 3)


def main(dataset_dir: str, brats_dir: str, output: str = str(ROOT / "benchmarks" / "pixel_size.json")) -> None:
    """Measure every patient that both sets hold.

    Args:
        dataset_dir: with ``volumes/<patient>/{flair,brain}.nii.gz``.
        brats_dir: with ``cases.csv`` (columns ``case`` and ``tcga_patient``) and ``<case>/<case>_flair.nii.gz``.
        output: the JSON file.
    """
    patients: dict[str, Any] = {}
    with (Path(brats_dir) / "cases.csv").open(newline="") as file:
        cases = {row["tcga_patient"]: row["case"] for row in csv.DictReader(file) if row["tcga_patient"]}
    for patient, case in sorted(cases.items()):
        folder = Path(dataset_dir) / "volumes" / patient
        if not folder.is_dir():
            continue
        fixed = sitk.ReadImage(str(Path(brats_dir) / case / f"{case}_flair.nii.gz"), sitk.sitkFloat32)
        head = sitk.ReadImage(str(folder / "flair.nii.gz"), sitk.sitkFloat32)
        size, information = true_voxel_size(fixed, head, sitk.ReadImage(str(folder / "brain.nii.gz")))
        patients[patient] = {"case": case, "slices": head.GetSize()[2], "voxel_mm": size, "information": information}
        print(f"{patient}: {size[0]:.3f} x {size[1]:.3f} x {size[2]:.2f} mm", flush=True)
    in_plane = [sum(p["voxel_mm"][:2]) / 2 for p in patients.values()]
    through = [p["voxel_mm"][2] for p in patients.values()]
    summary = {
        name: {"least": min(v), "median": round(median(v), 3), "largest": max(v)}
        for name, v in (("pixel_mm", in_plane), ("slice_distance_mm", through))
    }
    record = {"simpleitk": sitk.Version_VersionString(), **summary, "patients": patients}
    write(Path(output), json.dumps(record, indent=2).encode() + b"\n")
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    fire.Fire(main)
