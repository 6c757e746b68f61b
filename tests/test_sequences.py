"""The names that scanners, BIDS and BraTS give, and the sequence that each stands for."""

from __future__ import annotations

import pytest

from scripts.images.sequences import sequence_of

NAMES = {
    "FLAIR": (
        "p1_flair",
        "T2 FLAIR ax",
        "AX FLAIR BRAIN",
        "AX T2 FLAIR +C",
        "t2_tirm_dark-fluid",
        "t2_tirm_tra_dark-fluid",
        "sub-T1003_ses-1_FLAIR",
        "BraTS20_Training_001_flair",
        "BraTS-GLI-00000-000-t2f",
    ),
    "T1": (
        "sub-01_T1w",
        "t1_mprage_sag",
        "Ax T1 FLAIR",
        "T1 pre-contrast",
        "BraTS-GLI-00000-000-t1n",
        "BraTS20_Training_001_t1",
        "SAG FSPGR",
    ),
    "T1Gd": (
        "AX T1 POST",
        "t1_gd",
        "T1 +C",
        "BraTS20_Training_001_t1ce",
        "BraTS-GLI-00000-000-t1c",
        "T1 MPRAGE with contrast",
    ),
    "T2": ("t2_tse", "sub-01_T2w", "BraTS-GLI-00000-000-t2w", "BraTS20_Training_001_t2"),
    "PD": ("PD_tse_tra", "sub-01_PDw"),
    "STIR": ("COR STIR",),
    "SWI": ("SWI_Images", "T2*", "sub-01_T2starw", "AX T2 GRE", "SWAN"),
    "DWI": ("ep2d_diff_3scan_trace", "sub-01_dwi", "AX DWI b1000"),
    "ADC": ("ep2d_diff_ADC", "ADC map"),
    "angiography": ("TOF_3D", "3D TOF MRA"),
    "perfusion": ("pcasl", "sub-01_asl"),
    "functional": ("sub-01_task-rest_bold",),
    "localizer": ("localizer", "3-plane loc", "Survey"),
    "mask": (
        "BraTS20_Training_001_seg",
        "BraTS-GLI-00000-000-seg",
        "W39_1998.09.19_Segm",
        "flair_brain_mask",
        "sub-01_FLAIR_dseg",
        "sub-01_desc-brain_mask",
        "anomaly_map",
        "labelsTr",
        "masks",
    ),
    None: ("patient1", "scan", "IM0001", "Unsegmented scan", "flash"),
}


@pytest.mark.parametrize(("name", "sequence"), [(name, s) for s, names in NAMES.items() for name in names])
def test_a_name_stands_for_its_sequence(name: str, sequence: str | None) -> None:
    assert sequence_of(name) == sequence
