"""The direction of the on-policy gradient, known from parts of a sample, so that its noise is known too.

The reference sample is split into R parts, whose gradients sum to g = Σ_r g_r. u = g/|g| is the direction that others
are compared with. The parts are independent. So leaving out one part at a time shows how much u moves by chance, and
the products of different parts show how long g would be without noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """The parts of the reference gradient, in units of the length of their sum.

    Attributes:
        gram: [R, R] products of the parts' gradients with each other.
        along: [P, R] products v_j·g_r of the random directions with them.
        counts: [R] how many responses each part has.
    """

    gram: Array
    along: Array
    counts: Array

    def __len__(self) -> int:
        return len(self.gram)

    @cached_property
    def cosine(self) -> float:
        """ρ, the cosine between u and the true gradient: |true| / |g|, where products of different parts give |true|².

        It is 0 if these products sum to less than 0, so that noise hides the gradient.
        """
        return self._cosine(np.ones(len(self)))

    @cached_property
    def cosines(self) -> list[float]:
        """ρ without each part in turn."""
        return [self._cosine(1.0 - row) for row in np.eye(len(self))]

    def _cosine(self, kept: Array) -> float:
        weights = kept * self.counts
        pairs = weights.sum() ** 2 - np.square(weights).sum()
        gram = self.gram * np.outer(kept, kept)
        whole = float(gram.sum())
        between = whole - float(np.trace(gram))
        if not (pairs > 0 and whole > 0 and between > 0):
            return 0.0
        return min(1.0, math.sqrt(between / pairs * weights.sum() ** 2 / whole))

    def coordinates(self, projections: Array) -> Array:
        """[..., 1 + P] u·x, and each v_j·x less its part along u.

        So a·b is a_0 b_0 + mean_j a_j b_j, without bias.

        Args:
            projections: [..., R + P] the products of x with each g_r and each v_j.
        """
        parts = self.along_unit(projections)
        others = projections[..., len(self) :] - parts * self.along.sum(1)
        return np.concatenate([parts, others], -1)

    def along_unit(self, projections: Array) -> Array:
        """[..., 1] u·x."""
        unit: Array = projections[..., : len(self)].sum(-1, keepdims=True)
        return unit

    def signals(self, projections: Array) -> Array:
        """[..., R] the product of x with the unit vector of all parts but one, for each in turn."""
        parts = projections[..., : len(self)]
        norms = [
            math.sqrt(max((self.gram * np.outer(1.0 - row, 1.0 - row)).sum(), 0.0))
            for row in np.eye(len(self))
        ]
        lengths = np.array([norm if norm > 0 else math.nan for norm in norms])
        signals: Array = (parts.sum(-1, keepdims=True) - parts) / lengths
        return signals
