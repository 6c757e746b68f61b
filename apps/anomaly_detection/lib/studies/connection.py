"""The connection to a DICOM server: who asks, and for how long."""

from __future__ import annotations

from typing import Any

from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
"""So long the DICOM server may take to accept a connection, and between two pieces of an answer."""


def dicomweb_seconds(conf: dict[str, str]) -> tuple[float, float]:
    """The time limits for the DICOM server, to connect and to read: ``dicomweb_timeout`` sets the second."""
    return CONNECT_SECONDS, float(conf.get("dicomweb_timeout", READ_SECONDS))


class _TimeLimited(HTTPAdapter):
    """Requests that end: each has a time limit unless it brings its own."""

    def __init__(self, timeout: tuple[float, float], retries: Retry) -> None:
        self._timeout = timeout
        super().__init__(max_retries=retries)

    def send(self, *args: Any, **kwargs: Any) -> Any:
        return super().send(*args, **{**kwargs, "timeout": kwargs.get("timeout") or self._timeout})


def _session(connect: float, read: float) -> Any:
    """For requests to the DICOM server; those that it did not take are tried again, those that it does not answer are not."""
    from dicomweb_client.session_utils import create_session, create_session_from_user_pass

    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    session = create_session_from_user_pass(user, password) if user and password else create_session()
    retries = Retry(
        total=2,
        read=0,
        status_forcelist=(429, 503, 504),
        backoff_factor=0.1,
        respect_retry_after_header=False,
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, _TimeLimited((connect, read), retries))
    return session


def client_of(url: str, conf: dict[str, str]) -> DICOMwebClientX:
    """A client of a DICOMweb server, see `dicomweb_seconds` and MONAI Label's settings."""
    client = DICOMwebClientX(
        url=url,
        session=_session(*dicomweb_seconds(conf)),
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    # the default tries for half a minute, also where nothing listens, and five times where nothing answers
    client.set_http_retry_params(retry=False)
    return client
