"""What is in a datalist, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

Item = dict[str, Any]


def label_counts(items: Iterable[Item]) -> Counter[int]:
    """How many images, or slices, have which label."""
    counts: Counter[int] = Counter()
    for item in items:
        label = item.get("label")
        counts.update(label if isinstance(label, list) else [label] if label is not None else [])
    return counts


def described(section: str, items: Sequence[Item]) -> str:
    """The counts of a section in one line."""
    counts = label_counts(items)
    unit = "slices" if any(isinstance(item.get("label"), list) for item in items) else "images"
    patients = len({item["subject"] for item in items})
    left = f", to leave out {counts[-1]}" if counts[-1] else ""
    return (
        f"{section}: patients {patients}, images {len(items)}; {unit}: healthy {counts[0]}, diseased {counts[1]}{left}"
    )
