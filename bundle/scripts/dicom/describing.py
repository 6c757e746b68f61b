"""What objects say of themselves: whose they are, and what a reader sees in a list of series."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydicom
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from .series import is_radiograph

ALGORITHM = "Diffusion anomaly detection"
"""The name of the algorithm and of the software in the objects that are written."""
AUTOMATIC_LABEL = "ANOMALY_AI"
"""Content Label of a segmentation that no reader has reviewed. A server's other segmentations are readers' labels."""
REVIEWED_LABEL = "ANOMALY"
"""Content Label of a segmentation that a reader drew or submitted."""
BRAIN, CHEST = Code("12738006", "SCT", "Brain"), Code("51185008", "SCT", "Chest")
LONG_STRING, SHORT_TEXT = 64, 1024
"""Characters that these value representations hold (PS3.5 6.2)."""
# of characters, that the name of the source has at least
_ROOM = 9
# behind a scanner's own series in a viewer's list
NUMBERS = {"map": 901, AUTOMATIC_LABEL: 902, REVIEWED_LABEL: 903, "overlay": 904}


def regions_of(images: Sequence[pydicom.Dataset]) -> list[Code]:
    """What of the body is seen, as far as the files say it; of a series of slices that names nothing known, the brain."""
    part = str(images[0].get("BodyPartExamined") or "").title()
    if any(word in part for word in ("Chest", "Thorax")):
        return [CHEST]
    if is_radiograph(images):
        return []
    if any(word in part for word in ("Head", "Skull")):
        return [BRAIN]
    return [getattr(codes.cid4, part.replace(" ", ""), BRAIN)]  # PS3.16, as pydicom names its codes


def source_of(series: Sequence[pydicom.Dataset]) -> str:
    """What a reader knows a series by."""
    return str(series[0].get("SeriesDescription") or series[0].get("ProtocolName") or "").strip()


def shortened(begin: str, source: str, end: str) -> str:
    """A series description: what is of which series. The middle of the source's name is left out where it is too long."""
    room = LONG_STRING - len(f"{begin} of {end}")
    if not source or room < _ROOM:
        return f"{begin}{end}"[:LONG_STRING]
    if len(source) > room:
        tail = (room - 3) // 2
        source = f"{source[: room - 3 - tail]}...{source[len(source) - tail :]}"
    return f"{begin} of {source}{end}"


def described(
    what: str, series: Sequence[pydicom.Dataset], score: float | None, warnings: Sequence[str], options: str
) -> str:
    """The score first: lists of series show little more."""
    begin = f"AI {'no score' if score is None else f'{score:.3f}'}{' CHECK' if warnings else ''} {what}"
    end = f" ({options}, research)" if options else ", not for clinical use"
    if len(f"{begin} of {end}") > LONG_STRING - _ROOM:
        end = f" ({options})" if options else ""
    return shortened(begin, source_of(series), end)


def dated(dataset: Any) -> Any:
    """The same, with what highdicom leaves out or sets otherwise."""
    dataset.SeriesDate, dataset.SeriesTime = dataset.ContentDate, dataset.ContentTime
    dataset.SpecificCharacterSet = "ISO_IR 192"
    return dataset


def new_series(number: int, version: str) -> dict[str, Any]:
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
