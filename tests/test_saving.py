"""Files of results: on the grid of the input's file, in its unit, and without what it says of a patient."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.running.saving import save_nifti
from synthetic import GRIDS, write_head
from tiny_run import datalist, run


def test_outputs_carry_no_patient_data(tmp_path: Path, weights: dict[str, str]) -> None:
    """As MRIcroGL, dcm2niix and scanners write it: in the text fields and in extensions of the header."""
    item = write_head(tmp_path)
    image = nib.load(item["image"])
    for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        image.header[field] = b"DOE^JANE"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JANE"))
    image.header["cal_max"] = 200
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 4)
    image.header.set_xyzt_units("mm", "sec")
    path = tmp_path / "FLAIR.NII.GZ"
    nib.save(image, tmp_path / "x.nii.gz")
    (tmp_path / "x.nii.gz").rename(path)
    assert run(weights, input=datalist(tmp_path, [{**item, "image": str(path)}]), output_dir=str(tmp_path / "out")) == 0
    outputs = sorted((tmp_path / "out" / "flair").glob("*.nii.gz"))
    assert len(outputs) == 3
    for output in outputs:
        content = gzip.decompress(output.read_bytes())
        assert b"DOE" not in content
        result = nib.load(output)
        assert len(result.header.extensions) == 0 and result.header["cal_max"] == 0
        assert (int(result.header["qform_code"]), int(result.header["sform_code"])) == (1, 4)
        assert result.header.get_xyzt_units() == ("mm", "sec")
        np.testing.assert_array_equal(result.affine, image.affine)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("unit", [("mm", 1.0), ("micron", 0.001), ("meter", 1000.0)])
def test_results_lie_on_the_grid_of_the_file_in_its_own_unit(
    kind: Any, unit: tuple[str, float], tmp_path: Path
) -> None:
    name, mm = unit
    shape, affine = GRIDS["oblique"]
    own = np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ affine
    image = kind(np.zeros(shape, np.float32), own)
    image.header.set_xyzt_units(name)
    nib.save(image, tmp_path / "a.nii.gz")
    own = nib.load(tmp_path / "a.nii.gz").affine
    image = MetaTensor(torch.zeros(1, *shape), affine=np.diag([mm, mm, mm, 1]) @ own)
    save_nifti(image, str(tmp_path / "a.nii.gz"), tmp_path / "b.nii.gz")
    result = nib.load(tmp_path / "b.nii.gz")
    # of NIfTI-2's float64, NIfTI-1 keeps float32
    np.testing.assert_allclose(result.affine, own, rtol=0 if kind is nib.Nifti1Image else 1e-6, atol=0)
    assert result.header.get_xyzt_units()[0] == name
    # a grid of its own, such as with another spacing
    save_nifti(MetaTensor(torch.zeros(2, *shape), affine=affine * 3), str(tmp_path / "a.nii.gz"), tmp_path / "b.nii.gz")
    result = nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(result.affine[:3] * mm, affine[:3] * 3, rtol=1e-6)
    lengths = np.linalg.norm(affine[:3, :3] * 3, axis=0)
    np.testing.assert_allclose(np.array(result.header.get_zooms()[:3]) * mm, lengths, rtol=1e-6)
    assert result.header.get_xyzt_units()[0] == name and result.shape == (*shape, 2)
