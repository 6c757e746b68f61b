"""Smooth functions of the place within a foreground."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

Array = NDArray[Any]
DEGREE = 3


class Polynomials(NamedTuple):
    """Products of Legendre polynomials, one an axis, of together first to third degree: 19 terms, the constant left out.

    They are 1 or less within the box from `low` to `high`, in voxels, which is -1 to 1 on every axis.
    """

    low: Array
    high: Array

    @classmethod
    def over(cls, inside: Array) -> Polynomials:
        """Over the box of a foreground, bool ``(H, W, D)``, whose outermost hundredth a side lies outside."""
        low, high = np.percentile(np.argwhere(inside), [1, 99], axis=0)
        return cls(low, high)

    @property
    def exponents(self) -> list[tuple[int, int, int]]:
        """The degree of each term on each axis."""
        some = range(DEGREE + 1)
        return [(i, j, k) for i in some for j in some for k in some if 0 < i + j + k <= DEGREE]

    @property
    def degrees(self) -> list[int]:
        """Of each term."""
        return [sum(e) for e in self.exponents]

    def _on_axis(self, axis: int, places: Array) -> Array:
        """``(DEGREE + 1, P)``: the polynomials of an axis at its coordinates ``(P,)``."""
        half = max((self.high[axis] - self.low[axis]) / 2, 1)
        return legendre.legvander((places - (self.low[axis] + self.high[axis]) / 2) / half, DEGREE).T

    def at(self, places: Array) -> Array:
        """The terms ``(P, 19)`` at voxels' places ``(P, 3)``."""
        x, y, z = (self._on_axis(axis, places[:, axis]) for axis in range(3))
        return np.stack([x[i] * y[j] * z[k] for i, j, k in self.exponents], axis=1)

    def sum(self, coefficients: Array, shape: Sequence[int]) -> Array:
        """Of the terms times their coefficients ``(19,)``, at every voxel of a volume: ``shape``."""
        of_axes = np.zeros((DEGREE + 1,) * 3)
        of_axes[tuple(np.array(self.exponents).T)] = coefficients
        x, y, z = (self._on_axis(axis, np.arange(n)) for axis, n in enumerate(shape))
        total: Array = np.einsum("ijk,ix,jy,kz->xyz", of_axes, x, y, z, optimize=True)
        return total
