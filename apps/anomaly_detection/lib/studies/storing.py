"""Objects stored on a DICOM server."""

from __future__ import annotations

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from retrying import RetryError


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
