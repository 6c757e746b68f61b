"""What tables say of patients, as the groups of an item."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

AGES = {40: "under 40", 60: "40 to 59", 130: "60 and over"}
"""Groups of ages, each under so many years; the oldest person there was reached 122."""
SEXES = {"M": "M", "F": "F", "MALE": "M", "FEMALE": "F"}


def groups_of(row: Mapping[str, str], names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """``groups`` of an item, from a line of a table; nothing where it says nothing.

    Args:
        row: of the table.
        names: for each group the columns that may hold it. Of a group called "age", years such as 57, 57.0 or 057Y become a
            range; of "sex", words become M or F; what is neither is left out.
    """
    found = {}
    for group, columns in names.items():
        values = [(row.get(column) or "").strip() for column in columns]
        value = next(filter(None, values), "")
        if group == "age":
            years = re.fullmatch(r"(\d{1,3})(?:\.0+)?Y?", value, re.IGNORECASE)
            value = next((of_age for most, of_age in AGES.items() if years and int(years[1]) < most), "")
        elif group == "sex":
            value = SEXES.get(value.upper(), "")
        if value:
            found[group] = value
    return {"groups": found} if found else {}
