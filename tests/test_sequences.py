"""The names that scanners, BIDS and BraTS give, and the sequence that each stands for."""

from __future__ import annotations

import pytest

from scripts.images.sequences import named_as, sequence_of

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
        "sub-1_space-T1w_desc-preproc_FLAIR",
        "FLAIR_to_T1",
        "flair_regT1",
        "CT1_FLAIR",
        "sub-CT1_FLAIR",
        "T2-SPACE-FLAIR",
        "T2_SPACE-FLAIR_sag",
    ),
    "T1": (
        "sub-01_T1w",
        "t1_mprage_sag",
        "Ax T1 FLAIR",
        "T1 pre-contrast",
        "BraTS-GLI-00000-000-t1n",
        "BraTS20_Training_001_t1",
        "SAG FSPGR",
        "T1 SPACE",
        "t1_space_sag_p2_iso",
        "t1_mprage_sag_reference",
        "t1_tse_tra_posterior_fossa",
        "AX T1 POST FOSSA",
        "AX T1 W/O CONTRAST",
        "T1W WO CONTRAST",
        "SAG T1 WO CONTRAST",
        "AX T1 NO CONTRAST",
        "AX T1 WITHOUT",
        "AX T1 PRE GAD",
        "T1_PRE_GD",
        "T1 NON-GAD",
        "T1 unenhanced",
        "t1_vibe_precontrast",
        "T1 VOR KM",
        "T1 oKM",
        "T1 POST OP",
        "ses-post_T1w",
        "sub-01_ce-none_T1w",
        "T1_CER01",
        "PRE GAD AX T1",
        "WITHOUT CONTRAST T1",
        "nonGd T1",
        "POST OP T1",
        "t1_se",
        "scan in T1",
        "CT1_T1w",
        "KM_001_t1",
        "GD-001_T1",
        "sub-KM_T1w",
        "high contrast T1",
        "sub-contrast_T1w",
        "GAD_003_T1",
        "sub-1_space-FLAIR_T1w",
        "p1_post_T1",
        "gad001_t1",
    ),
    "T1Gd": (
        "AX T1 POST",
        "t1_gd",
        "T1 +C",
        "BraTS20_Training_001_t1ce",
        "BraTS-GLI-00000-000-t1c",
        "T1 MPRAGE with contrast",
        "AX T1 WITH CONTRAST",
        "T1 W/ CONTRAST",
        "T1 W CONTRAST",
        "T1 GAD",
        "T1+C",
        "T1 C+",
        "T1ce",
        "t1c001",
        "t1gd",
        "T1wGd",
        "T1_P1_post",
        "T1 postGd",
        "t1_mprage_post_contrast",
        "t1_mprageGd",
        "t1_mprage_tra_KM",
        "T1 nach KM",
        "AX T1 +GD",
        "T1 post gad",
        "AX T1 WITHOUT FS POST",
        "AX T1 POST NO FS",
        "T1 PRE-OP POST GAD",
        "ses-pre_T1ce",
        "SAG MPRAGE POST",
        "sub-01_ce-gadolinium_T1w",
        "GAD T1",
        "+C AX T1",
        "C+ T1 AX",
        "+C 3D BRAVO",
        "POST GAD AX T1 FS",
        "POST CONTRAST AX T1",
        "CE T1",
        "KM T1 tra",
        "CONTRAST MPRAGE",
        "CT1",
        "p1_CT1",
        "MPRAGE_T1c",
        "T1Gd_to_FLAIR",
        "CT1_T1ce",
        "T1-SPACE-POST",
        "T1_SPACE-GD",
        "POST GAD SAG 3D T1",
        "CONTRAST ENHANCED AX T1",
    ),
    "T1 with and without contrast": (
        "T1 PRE AND POST",
        "T1 pre/post gad",
        "T1 W/WO CONTRAST",
        "T1 W WO GAD",
        "T1 W/O & W CONTRAST",
        "T1 WITH AND WITHOUT CONTRAST",
        "WITH AND WITHOUT CONTRAST T1",
        "AX POST T1",
        "POST AX T1",
        "km_t1",
        "ce_t1w",
    ),
    "T2": (
        "sub-1_space-T1w_desc-preproc_T2w",
        "T2_to_FLAIR",
        "CT1_t2",
        "t2_tse",
        "sub-01_T2w",
        "BraTS-GLI-00000-000-t2w",
        "BraTS20_Training_001_t2",
    ),
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


REST = {
    "sub-01": "T2_FLAIR T1w T1ce T2w ce-gadolinium_T1w",
    "p1": "T2FLAIR t2_tirm_tra_dark-fluid 3D_FLAIR T1 T1C T1wCE T1+C T1_pre T1_w_o_contrast T1_with_contrast T1_FS_post "
    "T1_MPRAGE T1_MPRAGE_Gd t1_mprage_sag t1_mprage_tra_KM T1_pre_post t1_se t1_se_gd t1_se_tra t1_se_tra_km "
    "CT1 FLAIR_to_T1 T2_in_T1 space-T1w_T2w space-T1w_FLAIR gad_T1 +C_T1 post_gad_T1 "
    "pre_gad_T1 T2_TSE t2 t2f SAG_FSPGR dwi T2starw",
    # who is called so
    "CT1": "T1 T1ce T2 FLAIR",
    "KM_001": "T1 T1ce T2 FLAIR",
    # a session's, not said of contrast
    "p1_pre": "flair T1 T1ce t2w",
    "p1_post": "flair T1 T1ce t2w",
}
"""What is the same in the names of a patient's images, and what follows it."""


def test_what_was_registered_is_in_the_study_of_what_it_was_registered_to() -> None:
    names = (
        "desc-preproc_T1w",
        "space-T1w_desc-preproc_FLAIR",
        "ce-gadolinium_desc-preproc_T1w",
        "space-T1w_desc-preproc_T2w",
    )
    assert {named_as(f"sub-01_{name}.nii.gz")[1] for name in names} == {"sub-01_desc-preproc"}


@pytest.mark.parametrize(("case", "words"), [(case, word) for case, words in REST.items() for word in words.split()])
def test_the_images_of_a_patient_have_the_rest_of_their_names_in_common(case: str, words: str) -> None:
    assert named_as(f"{case}_{words}.nii.gz")[1] == case


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((f"{s}001.nii", "001") for s in ("flair", "t1w", "t1ce", "t1c", "t1gd", "t2w")),
        *((f"{s}_P1.nii", "P1") for s in ("FLAIR", "T1", "T1_pre", "T2")),
        *((f"{s}.nii", "P1") for s in ("T1_P1_post", "T1_P1_w_contrast", "T1_P1_FS_post", "T1post_P1", "ep2d_diff_P1")),
        *((f"p1_{s}_x.nii", "p1_x") for s in ("T1", "T2_FLAIR", "T1_post", "FLAIR")),
        *((f"{s}anna.nii", "anna") for s in ("T1", "T2", "flair")),
        *((f"p1/{s}.nii", "p1") for s in ("T2_FLAIR", "T1", "T1C", "T2")),
        ("T1_post_001_ce.nii", "001"),
        ("T1w_O.nii", "O"),
        ("p1_flair_post.nii", "p1_post"),
    ],
)
def test_what_tells_patients_apart_stays(name: str, case: str) -> None:
    """Attached to a sequence, behind it, or between its words."""
    assert named_as(name)[1] == case
