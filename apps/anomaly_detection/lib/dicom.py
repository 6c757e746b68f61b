"""DICOM in and out: read a series of MR images, write masks and maps as objects that viewers overlay on it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import requests
from dicomweb_client import DICOMwebClient
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DSfloat, format_number_as_ds
from retrying import RetryError

ALGORITHM = "Diffusion anomaly detection"
"""The name of the algorithm and of the software in the objects that are written."""
AUTOMATIC_LABEL = "ANOMALY_AI"
"""Content Label of a segmentation that no reader has reviewed. A server's other segmentations are readers' labels."""
REVIEWED_LABEL = "ANOMALY"
"""Content Label of a segmentation that a reader drew or submitted."""
NOT_ASSESSED = -1.0
"""The value in a parametric map of what was not assessed. A map is 0 or more, so it can't be mistaken for one."""
TOLERANCE = 0.05
"""How far, in voxels, a mask's or a map's grid may be off the series': what the rounding in headers amounts to."""

# PS3.16 CID 7150, 7151, 4, 7162, 7181, 7180
_ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_LESION = Code("52988006", "SCT", "Lesion")
_BRAIN = Code("12738006", "SCT", "Brain")
_ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")
_NO_UNITS = Code("1", "UCUM", "no units")
_SIGNAL_CHANGE = Code("113059", "DCM", "Signal change")

_CONCEPT = Code("309825002", "SCT", "Spatial and Relational Concept")
# private: no standard code says that software did not look at a region
_NOT_ASSESSED = Code("NOT_ASSESSED", "99DAB", "Not assessed by the algorithm")
# of sRGB (68, 230, 42) and (211, 211, 211)
_GREEN, _GREY = CIELabColor(80.7, -72.4, 71.6), CIELabColor(84.6, 0.0, 0.0)

_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LONG_STRING, _SHORT_TEXT = 64, 1024
# of characters, that the name of the source has at least
_ROOM = 9
# behind a scanner's own series in a viewer's list
_NUMBERS = {"map": 901, AUTOMATIC_LABEL: 902, REVIEWED_LABEL: 903}
# what PS3.3 lets be empty but not absent, and what archives nevertheless drop
_TYPE_2 = (
    "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime "
    "ReferringPhysicianName"
).split()
_NEEDED = (
    "StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID ImageOrientationPatient ImagePositionPatient PixelSpacing "
    "Rows Columns BitsAllocated PixelData"
).split()


def series_from_nifti(
    path: str | Path,
    folder: str | Path,
    *,
    modality: str = "MR",
    series_description: str,
    patient_id: str,
    patient_name: str,
    study_uid: str | None = None,
    series_uid: str | None = None,
    series_number: int = 1,
) -> list[Path]:
    """Write a NIfTI volume as a series of MR images, one file for each slice along its third axis.

    It makes demonstration and test data: what only a scanner knows (sequence, echo time, date) is left empty. Integers
    from 0 to 65535 are stored as they are. Other intensities are scaled to 16 bits, with Rescale Slope and Intercept
    that give them back; where none is negative the intercept is 0, so that readers which do not apply a rescale to MR
    see the same image in another unit.

    Args:
        path: of a 3D volume ``(X, Y, Z)`` with perpendicular axes, in any orientation, voxel sizes in mm.
        folder: where the files go; made if it doesn't exist.
        modality: Modality (0008,0060) of the series.
        series_description: at most 64 characters.
        patient_id: series with the same one share a study, unless `study_uid` is given.
        patient_name: as DICOM writes it, ``Family^Given``.
        study_uid: by default derived from the patient's ID. The Frame of Reference UID is derived from it.
        series_uid: by default derived from the study and the description.
        series_number: within the study.

    Returns:
        the files, in the order of the volume's third axis.

    Raises:
        ValueError: not a 3D volume, an unknown orientation, axes that aren't perpendicular, NaN or infinity.

    Source: PS3.3 A.4 (MR Image IOD), C.7.6.2 (Image Plane), C.8.3.1 (MR Image).
    """
    image = nib.load(path)
    header = image.header
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        raise ValueError(f"{path}: its orientation is unknown (qform_code and sform_code are 0); set one of them.")
    values = np.asanyarray(image.dataobj)
    if values.ndim != 3:
        raise ValueError(f"{path}: has {values.ndim} dimensions {values.shape}; a series is made from a 3D volume.")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: holds NaN or infinity; every voxel must be finite.")
    lps = _TO_LPS @ image.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / spacing
    if not np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4:
        raise ValueError(f"{path}: its axes are not perpendicular, which DICOM can't express; resample it first.")
    stored, slope, intercept = _stored(values)
    low, high = np.percentile(stored, (0.5, 99.5)) * slope + intercept

    study_uid = study_uid or _uid(patient_id, "study")
    series_uid = series_uid or _uid(study_uid, series_description)
    shared = pydicom.Dataset()
    shared.SpecificCharacterSet = "ISO_IR 192"
    shared.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    shared.SOPClassUID = MRImageStorage
    for keyword in _TYPE_2:
        setattr(shared, keyword, None)
    shared.PatientID = patient_id
    shared.PatientName = patient_name
    shared.StudyInstanceUID = study_uid
    shared.StudyDescription = "Brain MR, converted from NIfTI"
    shared.SeriesInstanceUID = series_uid
    shared.SeriesNumber = series_number
    shared.SeriesDescription = series_description
    shared.Modality = modality
    shared.BodyPartExamined = "BRAIN"
    shared.PatientPosition = None
    shared.FrameOfReferenceUID = _uid(study_uid, "frame of reference")
    shared.PositionReferenceIndicator = None
    shared.Manufacturer = None
    shared.BurnedInAnnotation = "NO"
    # RM: the file doesn't tell the sequence, and the standard asks for one
    shared.ScanningSequence = "RM"
    shared.SequenceVariant = "NONE"
    shared.ScanOptions = None
    shared.MRAcquisitionType = None
    shared.RepetitionTime = None
    shared.EchoTime = None
    shared.EchoTrainLength = None
    shared.SliceThickness = _ds(spacing[2])
    shared.SpacingBetweenSlices = _ds(spacing[2])
    shared.PixelSpacing = [_ds(spacing[1]), _ds(spacing[0])]
    shared.ImageOrientationPatient = [_ds(v) for v in (*axes[:, 0], *axes[:, 1])]
    shared.SamplesPerPixel = 1
    shared.PhotometricInterpretation = "MONOCHROME2"
    shared.Columns, shared.Rows = values.shape[:2]
    shared.BitsAllocated = shared.BitsStored = 16
    shared.HighBit = 15
    shared.PixelRepresentation = 0
    if (slope, intercept) != (1.0, 0.0):
        shared.RescaleSlope, shared.RescaleIntercept, shared.RescaleType = _ds(slope), _ds(intercept), "US"
    # LINEAR, the default, has no meaning for a width under 1, which intensities in [0, 1] need
    shared.VOILUTFunction = "LINEAR_EXACT"
    shared.WindowCenter = _ds((low + high) / 2)
    shared.WindowWidth = _ds(high - low if high > low else 1.0)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(values.shape[2]):
        dataset = deepcopy(shared)
        dataset.SOPInstanceUID = _uid(series_uid, str(k))
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [_ds(v) for v in lps[:3, 3] + k * lps[:3, 2]]
        dataset.PixelData = np.ascontiguousarray(stored[:, :, k].T).astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        paths.append(folder / f"IM{k + 1:04d}.dcm")
        dataset.save_as(paths[-1], write_like_original=False)
    return paths


def read_series(folder: str | Path) -> list[pydicom.Dataset]:
    """Read the single-frame images of one series, in the order of their positions.

    Attributes that the standard requires at least empty and that a file lacks are added empty, and a missing Slice
    Thickness as the distance of the slices, so that objects can be derived.

    Args:
        folder: holds the files of one series and nothing else; hidden files and folders in it are passed over.

    Returns:
        one dataset a slice, along the normal of the slices (the cross product of the row's and column's direction).

    Raises:
        ValueError: no file, a file that isn't DICOM or is broken, not a single-frame image, several series, slices of
            several shapes or orientations, two slices at one position, slices that are not evenly spaced along their
            normal (a missing image, a gantry tilt). The message names the file or what was found.

    Source: PS3.3 C.7.6.2.1.1 (Image Position and Image Orientation).
    """
    folder = Path(folder)
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != ".") if folder.is_dir() else []
    if not paths:
        raise ValueError(f"{folder}: there are no files; give the folder of one series of DICOM images.")
    series = [_read(path) for path in paths]
    first = series[0]
    for dataset, path in zip(series, paths, strict=True):
        if dataset.SeriesInstanceUID != first.SeriesInstanceUID:
            raise ValueError(f"{path}: belongs to another series than {paths[0].name}; give a folder a series.")
        for keyword in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "FrameOfReferenceUID"):
            a, b = dataset[keyword].value, first[keyword].value
            if not (a == b if isinstance(a, (str, int)) else np.allclose(a, b, rtol=0, atol=1e-4)):
                raise ValueError(
                    f"{path}: its {keyword} {a} differs from {b} of {paths[0].name}; slices must be alike."
                )
    normal = np.cross(*_orientation(first))
    series.sort(key=lambda d: float(normal @ _position(d)))
    gaps = np.diff([float(normal @ _position(d)) for d in series])
    if len(gaps) and gaps.min() < 1e-3:
        a, b = series[int(gaps.argmin())], series[int(gaps.argmin()) + 1]
        raise ValueError(f"{b.filename}: lies at the position of {Path(a.filename).name}; give one volume a series.")
    _check_even(series)
    for dataset in series:
        for keyword in _TYPE_2:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
        if not dataset.get("SliceThickness"):
            distance = gaps[0] if len(gaps) else dataset.get("SpacingBetweenSlices")
            if not distance:
                raise ValueError(f"{dataset.filename}: is a single slice without Slice Thickness; set it.")
            dataset.SliceThickness = _ds(distance)
    return series


def check_on_series(series: Sequence[pydicom.Dataset], shape: Sequence[int], affine: NDArray[np.floating]) -> None:
    """See to it that what is found in a volume can be written for a series.

    Args:
        series: as `read_series` gives it.
        shape: of the volume, ``(X, Y, Z)``.
        affine: ``(4, 4)`` from its indices to mm, RAS as in NIfTI.

    Raises:
        ValueError: the volume doesn't lie on the series' grid, within `TOLERANCE` of a voxel.
    """
    _on_series(series, np.empty(tuple(shape), dtype=bool), affine)


def segmentation(
    series: Sequence[pydicom.Dataset],
    mask: NDArray[np.bool_] | NDArray[np.uint8],
    affine: NDArray[np.floating],
    *,
    label: str,
    version: str,
    score: float | None = None,
    algorithm: bool = True,
    warnings: Sequence[str] = (),
    options: str = "",
) -> Segmentation:
    """A mask as a binary DICOM Segmentation, in a series of its own in the images' study.

    Its first segment is what is marked; where an algorithm did not assess everything, a second one says what.

    Every slice has a frame, also those without a marked pixel: readers that take the extent of the frames for that of
    the volume then get the images' grid, and a mask without any marked pixel is an object like others.

    Args:
        series: as `read_series` gives it.
        mask: ``(X, Y, Z)``, 1 marked, 2 not assessed (not in a reader's), else 0; on the series' grid, its axes in any
            order and direction.
        affine: ``(4, 4)`` from the mask's indices to mm, right, anterior, superior (RAS) as in NIfTI.
        label: what is marked, such as "anomaly"; also in the series' description.
        version: of the software.
        score: of the volume, 0 or more, for the series' description; None where nothing was assessed.
        algorithm: whether an algorithm made the mask (Content Label `AUTOMATIC_LABEL`) or a reader drew or submitted it
            (`REVIEWED_LABEL`).
        warnings: sentences that say why the mask may be wrong; the series' description then begins with CHECK.
        options: other ones than the default, short, for the series' description.

    Returns:
        the object, referring to every instance of the series.

    Raises:
        ValueError: other values, a mask that doesn't lie on the series' grid.

    Source: PS3.3 A.51 (Segmentation IOD), C.8.20.2 (Segmentation Image), 10.16 (Algorithm Identification).
    """
    allowed = (0, 1, 2) if algorithm else (0, 1)
    if not np.isin(mask, allowed).all():
        given = np.setdiff1d(mask, allowed)[:5].tolist()
        raise ValueError(f"the mask holds other values than {', '.join(map(str, allowed))}: {given}.")
    content_label = AUTOMATIC_LABEL if algorithm else REVIEWED_LABEL
    if algorithm:
        description = _description(label, series, score, warnings, options)
    else:
        description = _shortened(label, _source(series), " (reviewed)")
    identification = AlgorithmIdentificationSequence(ALGORITHM, _ARTIFICIAL_INTELLIGENCE, version)

    def segment(number: int, name: str, category: Code, kind: Code, colour: CIELabColor) -> SegmentDescription:
        item = SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC if algorithm else SegmentAlgorithmTypeValues.MANUAL,
            algorithm_identification=identification if algorithm else None,
            anatomic_regions=[_BRAIN],
        )
        item.RecommendedDisplayCIELabValue = list(colour.value)
        return item

    segments = [segment(1, label, _ABNORMAL, _LESION, _GREEN)]
    if (np.asarray(mask) == 2).any():
        segments.append(segment(2, "not assessed", _CONCEPT, _NOT_ASSESSED, _GREY))
    dataset = Segmentation(
        source_images=series,
        pixel_array=_on_series(series, np.asarray(mask), affine).astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        content_label=content_label,
        content_description=description,
        omit_empty_frames=False,
        series_description=description,
        **_new_series(_NUMBERS[content_label], version),
    )
    if warnings:
        dataset.SegmentSequence[0].SegmentDescription = " ".join(warnings)[:_SHORT_TEXT]
    return _dated(dataset)


def parametric_map(
    series: Sequence[pydicom.Dataset],
    array: NDArray[np.floating],
    affine: NDArray[np.floating],
    *,
    version: str,
    score: float | None,
    warnings: Sequence[str] = (),
    options: str = "",
) -> ParametricMap:
    """An anomaly map as a DICOM Parametric Map in 32-bit floats, in a series of its own in the images' study.

    NaN, what was not assessed, is stored as `NOT_ASSESSED`, named in Float Pixel Padding Value. The standard would
    allow NaN itself, but many viewers can't compute a window with it, and JSON, in which DICOMweb sends the padding
    value, has no NaN. The Modality is OT (other): the standard leaves it open, and with the images' own the map would
    be found where a server is asked for the MR series to work on.

    Args:
        series: as `read_series` gives it.
        array: ``(X, Y, Z)``, 0 or more, 1 is the brain's median intensity; NaN where not assessed. On the series' grid,
            its axes in any order and direction.
        affine: ``(4, 4)`` from the map's indices to mm, RAS as in NIfTI.
        version: of the software.
        score: of the volume, 0 or more, for the descriptions; None where nothing was assessed.
        warnings: sentences that say why the map may be wrong; the series' description then begins with CHECK.
        options: other ones than the default, short, for the series' description.

    Returns:
        the object, referring to every instance of the series.

    Raises:
        ValueError: negative or infinite values, a map that doesn't lie on the series' grid.

    Source: PS3.3 A.75 (Parametric Map IOD), C.8.32.1 (Modality), C.7.6.24 (padding), C.7.6.16.2.11
    (real world values).
    """
    values = np.asarray(array, dtype=np.float32)
    if np.isinf(values).any() or (values < 0).any():
        raise ValueError("the map holds negative or infinite values; it must be 0 or more, or NaN where not assessed.")
    values = np.where(np.isnan(values), np.float32(NOT_ASSESSED), values)
    mapping = RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation="Signal above the computed healthy one, in medians of the brain",
        unit=_NO_UNITS,
        value_range=(0.0, max(1.0, float(values.max()))),
        slope=1.0,
        intercept=0.0,
        quantity_definition=_SIGNAL_CHANGE,
    )
    dataset = ParametricMap(
        source_images=series,
        pixel_array=np.ascontiguousarray(_on_series(series, values, affine)),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        # the same for all, so that patients can be compared
        window_center=0.5,
        window_width=1.0,
        content_label=AUTOMATIC_LABEL,
        content_description=" ".join(["Nothing was assessed." if score is None else f"Score {score:.3f}.", *warnings])[
            :_LONG_STRING
        ],
        series_description=_description("map", series, score, warnings, options),
        **_new_series(_NUMBERS["map"], version),
    )
    shared = dataset.SharedFunctionalGroupsSequence[0]
    # highdicom leaves out the mandatory Frame Anatomy, and its LINEAR makes a threshold of a window of width 1
    anatomy = pydicom.Dataset()
    anatomy.FrameLaterality = "U"
    anatomy.AnatomicRegionSequence = [CodedConcept.from_code(_BRAIN)]
    shared.FrameAnatomySequence = [anatomy]
    shared.FrameVOILUTSequence[0].VOILUTFunction = "LINEAR_EXACT"
    dataset.FloatPixelPaddingValue = dataset.FloatPixelPaddingRangeLimit = NOT_ASSESSED
    return _dated(dataset)


def store(client: DICOMwebClient, dataset: pydicom.Dataset) -> None:
    """Store an object on a DICOMweb server and see to it that the server took it.

    Args:
        client: of the server.
        dataset: the object.

    Raises:
        RuntimeError: the server can't be reached, refuses, or doesn't list the object among the stored ones. The
            message has the server's reason and says what to do.

    Source: PS3.18 10.5 (Store Transaction), I.2 (Store Instances Response).
    """
    what = f"'{dataset.get('SeriesDescription', dataset.SOPClassUID.name)}' was not stored on {client.base_url}"
    try:
        response = client.store_instances([dataset])
    except (requests.RequestException, RetryError) as error:
        raise RuntimeError(
            f"{what}: {error}. Check that the server runs, that its address and the credentials are right, and that it "
            f"accepts {dataset.SOPClassUID.name}; then store again."
        ) from error
    failed = response.get("FailedSOPSequence") or []
    if failed:
        reasons = ", ".join(f"0x{int(item.get('FailureReason') or 0):04X}" for item in failed)
        raise RuntimeError(
            f"{what}: the server refused it (failure reason {reasons}, see PS3.18 I.2.2). Look into the server's log: "
            f"it may be out of space, or not accept {dataset.SOPClassUID.name}. Then store again."
        )
    stored = [item.get("ReferencedSOPInstanceUID") for item in response.get("ReferencedSOPSequence") or []]
    if dataset.SOPInstanceUID not in stored:
        raise RuntimeError(
            f"{what}: the server answered without confirming it. Is the address that of a DICOMweb store service? Look "
            "into the server's log; then store again."
        )


def _source(series: Sequence[pydicom.Dataset]) -> str:
    """What a reader knows a series by."""
    return str(series[0].get("SeriesDescription") or series[0].get("ProtocolName") or "").strip()


def _shortened(begin: str, source: str, end: str) -> str:
    """A series description: what is of which series. The middle of the source's name is left out where it is too long."""
    room = _LONG_STRING - len(f"{begin} of {end}")
    if not source or room < _ROOM:
        return f"{begin}{end}"[:_LONG_STRING]
    if len(source) > room:
        tail = (room - 3) // 2
        source = f"{source[: room - 3 - tail]}...{source[len(source) - tail :]}"
    return f"{begin} of {source}{end}"


def _description(
    what: str, series: Sequence[pydicom.Dataset], score: float | None, warnings: Sequence[str], options: str
) -> str:
    """The score first: lists of series show little more."""
    begin = f"AI {'no score' if score is None else f'{score:.3f}'}{' CHECK' if warnings else ''} {what}"
    end = f" ({options}, research)" if options else ", not for clinical use"
    if len(f"{begin} of {end}") > _LONG_STRING - _ROOM:
        end = f" ({options})" if options else ""
    return _shortened(begin, _source(series), end)


def _dated(dataset: Any) -> Any:
    """The same, with what highdicom leaves out or sets otherwise."""
    dataset.SeriesDate, dataset.SeriesTime = dataset.ContentDate, dataset.ContentTime
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def _uid(*sources: str) -> str:
    # pydicom joins them without a separator
    return str(generate_uid(entropy_srcs=["\n".join(sources)]))


def _new_series(number: int, version: str) -> dict[str, Any]:
    """What an object that is the only one of its series says of the series and of the software that made it."""
    return {
        "series_instance_uid": generate_uid(),
        "series_number": number,
        "sop_instance_uid": generate_uid(),
        "instance_number": 1,
        "manufacturer": ALGORITHM,
        "manufacturer_model_name": ALGORITHM,
        "software_versions": version,
        # required, and software has none
        "device_serial_number": "0",
    }


def _ds(value: float) -> DSfloat:
    """`value` with all the digits that the 16 characters of a decimal string hold."""
    return DSfloat(format_number_as_ds(float(value)))


def _stored(values: NDArray[np.generic]) -> tuple[NDArray[np.uint16], float, float]:
    """Values as 16-bit integers, with the slope and intercept, as rounded for DICOM, that give them back."""
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535 and bool((values == np.rint(values)).all()):
        return values.astype(np.uint16), 1.0, 0.0
    intercept = float(_ds(min(low, 0.0)))
    # a constant volume has no range
    slope = float(_ds((high - intercept) / 65535 or 1.0))
    return np.rint((values.astype(np.float64) - intercept) / slope).clip(0, 65535).astype(np.uint16), slope, intercept


def _read(path: Path) -> pydicom.Dataset:
    try:
        dataset = pydicom.dcmread(path)
        missing = [keyword for keyword in _NEEDED if keyword not in dataset or dataset[keyword].is_empty]
        compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    except InvalidDicomError as error:
        raise ValueError(f"{path}: is not a DICOM file; give a folder with the files of one series only.") from error
    except Exception as error:
        raise ValueError(f"{path}: can't be read ({error or type(error).__name__}); is the file complete?") from error
    if missing:
        raise ValueError(
            f"{path}: is not a single-frame image with a position in space (no {', '.join(missing)}); only such images "
            "can be worked on."
        )
    # pydicom returns what there is of pixels that end too early
    if not compressed and len(dataset.PixelData) < dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8:
        raise ValueError(f"{path}: ends before its last pixel; the file is not complete, fetch it again.")
    return dataset


def _orientation(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    """The direction of rows and that of columns, ``(2, 3)`` in LPS."""
    return np.array(dataset.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)


def _position(dataset: pydicom.Dataset) -> NDArray[np.float64]:
    return np.array(dataset.ImagePositionPatient, dtype=np.float64)


def _check_even(series: Sequence[pydicom.Dataset]) -> None:
    """See to it that sorted slices lie one step apart along their normal.

    Raises:
        ValueError: one is off by more than `TOLERANCE` of a step or of a pixel; the message says what is wrong.
    """
    if len(series) < 2:
        return
    first = series[0]
    row, column = _orientation(first)
    axes = np.stack([row, column, np.cross(row, column)])
    # mm along rows, columns and the normal, from the first slice
    offsets = np.stack([_position(d) - _position(first) for d in series]) @ axes.T
    heights, number = offsets[:, 2], np.arange(len(series))
    step = heights[-1] / (len(series) - 1)
    pixel = np.array([float(first.PixelSpacing[1]), float(first.PixelSpacing[0])])
    wrong = []
    if (np.abs(offsets[:, :2]) > TOLERANCE * pixel).any():
        shift = offsets[-1, :2] / heights[-1]
        straight = (np.abs(offsets[:, :2] - heights[:, None] * shift) <= TOLERANCE * pixel).all()
        wrong.append(
            f"a gantry tilt of {np.degrees(np.arctan(np.linalg.norm(shift))):.1f} degrees"
            if straight
            else f"slices shifted sideways by up to {np.linalg.norm(offsets[:, :2], axis=1).max():.1f} mm"
        )
    if (np.abs(heights - number * step) > TOLERANCE * step).any():
        gaps = np.diff(heights)
        steps = gaps / np.median(gaps)
        if (np.abs(steps - np.rint(steps)) < 2 * TOLERANCE).all() and np.rint(steps).max() > 1:
            wrong += [
                f"{round(steps[k]) - 1} missing image(s) between instance numbers "
                f"{series[k].get('InstanceNumber')} and {series[k + 1].get('InstanceNumber')}"
                for k in np.flatnonzero(np.rint(steps) > 1)
            ]
        else:
            wrong.append(f"uneven spacing, from {gaps.min():.2f} to {gaps.max():.2f} mm")
    if wrong:
        raise ValueError(
            f"{Path(first.filename).parent}: {'; '.join(wrong)}. Only evenly spaced slices, perpendicular to the axis "
            "they are stacked along, can be worked on; fetch what is missing or resample the series first."
        )


def _on_series(
    series: Sequence[pydicom.Dataset], array: NDArray[np.generic], affine: NDArray[np.floating]
) -> NDArray[np.generic]:
    """``(X, Y, Z)`` as ``(slices, rows, columns)`` of the series: axes permuted and reversed, no interpolation.

    Raises:
        ValueError: the grids don't coincide within `TOLERANCE`.
    """
    first = series[0]
    rows, columns = int(first.Rows), int(first.Columns)
    error = ValueError(
        f"the volume {array.shape} does not lie on the grid of the series ({len(series)} slices of {rows} rows and "
        f"{columns} columns); resample it onto the series' images first."
    )
    affine = np.asarray(affine, dtype=np.float64)
    if array.ndim != 3 or affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise error
    to_index = np.linalg.inv(affine) @ _TO_LPS
    row, column = _orientation(first)
    steps = np.stack([row * float(first.PixelSpacing[1]), column * float(first.PixelSpacing[0])]) @ to_index[:3, :3].T
    origins = np.stack([_position(d) for d in series]) @ to_index[:3, :3].T + to_index[:3, 3]
    # the axes of the array that columns and rows are counted along; the third is that of the slices
    across, down = (int(np.abs(step).argmax()) for step in steps)
    if across == down:
        raise error
    along = 3 - across - down
    order = np.rint(origins[:, along]).astype(int)
    if array.shape[across] != columns or array.shape[down] != rows or sorted(order) != list(range(array.shape[along])):
        raise error
    forward = [bool(step[axis] > 0) for step, axis in zip(steps, (across, down), strict=True)]
    expected = np.zeros((len(series), 2, 2, 3))
    expected[..., along] = order[:, None, None]
    expected[..., across] = np.array([0, columns - 1])[:: 1 if forward[0] else -1]
    expected[..., down] = np.array([0, rows - 1])[:: 1 if forward[1] else -1][:, None]
    corners = (
        origins[:, None, None]
        + steps[0] * np.array([0, columns - 1])[:, None]
        + steps[1] * np.array([0, rows - 1])[:, None, None]
    )
    if np.abs(corners - expected).max() > TOLERANCE:
        raise error
    volume = array.transpose(along, down, across)[:, :: 1 if forward[1] else -1, :: 1 if forward[0] else -1]
    return volume[order]


__all__ = [
    "ALGORITHM",
    "AUTOMATIC_LABEL",
    "NOT_ASSESSED",
    "REVIEWED_LABEL",
    "check_on_series",
    "parametric_map",
    "read_series",
    "segmentation",
    "series_from_nifti",
    "store",
]
