"""Viewers' uploads, which go some time after their last use."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from monailabel.utils.sessions import Sessions

logger = logging.getLogger(__name__)


def remove_expired(sessions: Sessions) -> None:
    """Remove the sessions whose time is over, and folders that are no session's by then: an upload that was cut off.

    MONAI Label's own stops at the first of those, and for good.
    """
    store = Path(sessions.store_path)
    for folder in store.iterdir() if store.is_dir() else ():
        try:
            if folder.is_dir() and _end(folder, sessions.expiry) < time.time():
                sessions.remove_session(folder.name)
        except OSError as error:
            logger.warning("Session %s can't be looked into: %s", folder.name, error)


def _end(folder: Path, expiry: float) -> float:
    """The time at which what lies in a session's folder is to go."""
    try:
        known = json.loads((folder / "meta.info").read_text())
        return float(known["last_access_ts"] + known["expiry"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.stat().st_mtime + expiry
