"""The checklist of docs/claim.md is whole, and what it says is answered has a place where it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "claim.md").read_text("utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if re.match(r"\| \d", line)]


def test_all_items_of_the_checklist_are_there() -> None:
    """The 2024 update has 44."""
    assert [int(row[0]) for row in ROWS] == list(range(1, 45))
    assert all(len(row) == 4 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_an_answer_is_somewhere(row: list[str]) -> None:
    """tests/test_readme.py follows the links."""
    assert row[2] in ("yes", "in part", "no")
    assert row[2] == "no" or re.search(r"\]\([^)]+\)", row[3]) or row[0] in ("5", "6")
