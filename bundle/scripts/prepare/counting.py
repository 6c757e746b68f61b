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
    """The counts of a section in one line; images with one label apart from those with one a slice."""
    of_slices = [item for item in items if isinstance(item.get("label"), list)]
    others = [item for item in items if not isinstance(item.get("label"), list)]
    unit = "images with one label" if of_slices else "images"
    parts = [f"{section}: patients {len({item['subject'] for item in items})}, images {len(items)}"]
    for name, labelled in ((unit, others), ("slices", of_slices)):
        if labelled:
            counts = label_counts(labelled)
            left = f", to leave out {counts[-1]}" if counts[-1] else ""
            parts.append(f"{name}: healthy {counts[0]}, diseased {counts[1]}{left}")
    return "; ".join(parts)
