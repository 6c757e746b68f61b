"""What the name of a file or of a series says about the sequence that it holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

RULES: dict[str, str] = json.loads(Path(__file__).with_suffix(".json").read_text())
"""Sequences, and the regular expressions that name them, any case; the first that is found decides.

They know the usual series descriptions of scanners, BIDS suffixes and the names of BraTS' files. "mask" is no image.
"""


def sequence_of(name: str) -> str | None:
    """The sequence that a file's name or a series' description speaks of, by `RULES`; None if it speaks of none.

    Args:
        name: such as "sub-01_T1w", "BraTS-GLI-00000-000-t2f" or "t2_tirm_tra_dark-fluid"; of a path, give the file's name.
    """
    return next((sequence for sequence, rule in RULES.items() if re.search(rule, name, re.IGNORECASE)), None)
