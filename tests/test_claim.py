"""The checklist of docs/claim.md is whole for each model, and what it says is answered has a place where it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CARDS = {"FLAIR": "README.md", "BRATS": "brats.md", "chest": "chest.md"}
HEAD, *ROWS = (
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "claim.md").read_text("utf-8").splitlines()
    if re.match(r"\| (item|\d)", line)
)


def test_all_items_of_the_checklist_are_there() -> None:
    """The 2024 update has 44; a model is one that has a zip."""
    assert HEAD[2:-1] == [*CARDS] and len(CARDS) == len([*(ROOT / "release" / "models").iterdir()])
    assert [int(row[0]) for row in ROWS] == list(range(1, 45))
    assert all(len(row) == len(HEAD) and all(row) for row in ROWS)


@pytest.mark.parametrize("model", CARDS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_an_answer_is_somewhere(row: list[str], model: str) -> None:
    """In the model's own card, or on a page of all; tests/test_readme.py follows the links."""
    answer, places = row[HEAD.index(model)], set(re.findall(r"\]\(([^)#]+)", row[-1]))
    assert answer in ("yes", "in part", "no")
    others = {f"../bundle/docs/{card}" for card in CARDS.values()} - {f"../bundle/docs/{CARDS[model]}"}
    assert answer == "no" or places - others


@pytest.mark.parametrize("card", CARDS.values())
def test_a_card_names_the_checklist(card: str) -> None:
    assert "`docs/claim.md`" in (ROOT / "bundle" / "docs" / card).read_text("utf-8")
