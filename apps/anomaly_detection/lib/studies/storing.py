"""Objects stored on a DICOM server."""

from __future__ import annotations

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from retrying import RetryError


class RefusedError(RuntimeError):
    """The server answered that it does not take such an object: to send it again is no use."""


def _is_final(answer: pydicom.Dataset) -> bool:
    """Whether there are reasons, all the object's: its SOP class (0122, A9xx), or what it holds (Cxxx)."""
    reasons = [int(item.get("FailureReason") or 0) for item in answer.get("FailedSOPSequence") or []]
    return bool(reasons) and all(
        reason == 0x0122 or 0xA900 <= reason <= 0xA9FF or 0xC000 <= reason <= 0xCFFF for reason in reasons
    )


def _refuses(response: requests.Response | None) -> bool:
    """Whether an answer refuses the object for good: unsupported (415), or 409 with reasons that don't pass."""
    if response is None or response.status_code != 409:
        return response is not None and response.status_code == 415
    try:
        return _is_final(pydicom.Dataset.from_json(response.json()))
    except Exception:  # it may be XML, or a page that says that the disk is full
        return False


def store(client: DICOMwebClient, dataset: pydicom.Dataset) -> None:
    """Store an object on a DICOMweb server and see to it that the server took it.

    Args:
        client: of the server.
        dataset: the object.

    Raises:
        RuntimeError: the server can't be reached, refuses, or doesn't list the object among the stored ones. The
            message has the server's reason and says what to do. RefusedError: it takes no such object.

    Source: PS3.18 10.5 (Store Transaction), I.2 (Store Instances Response).
    """
    what = f"'{dataset.get('SeriesDescription', dataset.SOPClassUID.name)}' was not stored on {client.base_url}"
    try:
        response = client.store_instances([dataset])
    except (requests.RequestException, RetryError) as error:
        kind = RefusedError if _refuses(getattr(error, "response", None)) else RuntimeError
        raise kind(
            f"{what}: {error}. Check that the server runs, that its address and the credentials are right, and that it "
            f"accepts {dataset.SOPClassUID.name}; then store again."
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"{what} as far as its answer says, which can't be read ({type(error).__name__}). Look into the server's log."
        ) from error
    failed = response.get("FailedSOPSequence") or []
    if failed:
        reasons = ", ".join(f"0x{int(item.get('FailureReason') or 0):04X}" for item in failed)
        raise (RefusedError if _is_final(response) else RuntimeError)(
            f"{what}: the server refused it (failure reason {reasons}, see PS3.18 I.2.2). Look into the server's log: "
            f"it may be out of space, or not accept {dataset.SOPClassUID.name}. Then store again."
        )
    stored = [item.get("ReferencedSOPInstanceUID") for item in response.get("ReferencedSOPSequence") or []]
    if dataset.SOPInstanceUID not in stored:
        raise RuntimeError(
            f"{what}: the server answered without confirming it. Is the address that of a DICOMweb store service? Look "
            "into the server's log; then store again."
        )
