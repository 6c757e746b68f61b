"""Scores of slices and of volumes, and how well they tell diseased ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from .cases import SliceCase


@dataclass
class Scores:
    """Scores of images, slices or volumes, in lists of one length."""

    subject: list[str] = field(default_factory=list)
    diseased: list[int] = field(default_factory=list)
    score: list[float] = field(default_factory=list)

    def add(self, subject: str, diseased: int, score: float) -> None:
        """One more image."""
        self.subject.append(subject)
        self.diseased.append(diseased)
        self.score.append(score)

    def ranks(self) -> dict[str, float]:
        """``auroc`` and ``ap``; nothing where all are of one class."""
        if len(set(self.diseased)) < 2:
            return {}
        return {
            "auroc": float(roc_auc_score(self.diseased, self.score)),
            "ap": float(average_precision_score(self.diseased, self.score)),
        }


@dataclass
class Scored:
    """A score of slices, and of volumes, which are diseased if one of their slices is, and score as the highest."""

    name: str
    slices: Scores = field(default_factory=Scores)
    _highest: dict[str, tuple[str, int, float]] = field(default_factory=dict)

    def add(self, case: SliceCase) -> None:
        """One more slice.

        Raises:
            ValueError: it has no finite score of this name.
        """
        score = case.scores.get(self.name, np.nan)
        if not np.isfinite(score):
            raise ValueError(f"{case}: has no finite image-level score of method {self.name!r}.")
        self.slices.add(case.subject, case.diseased, score)
        _, diseased, before = self._highest.get(case.volume, ("", 0, -np.inf))
        self._highest[case.volume] = (case.subject, max(diseased, case.diseased), max(before, score))

    @property
    def volumes(self) -> Scores:
        """Empty where every volume is one slice."""
        found = Scores()
        if len(self._highest) < len(self.slices.score):
            for of_volume in self._highest.values():
                found.add(*of_volume)
        return found

    def ranks(self) -> dict[str, float]:
        """``image_auroc``, ``image_ap``, ``volume_auroc`` and ``volume_ap``, those that are defined."""
        each = (("image", self.slices), ("volume", self.volumes))
        return {f"{what}_{name}": value for what, scores in each for name, value in scores.ranks().items()}
