"""The figures of one objective, from the coordinates of the gradients of groups of responses.

Notation: x_i is the gradient of group i (the responses to one problem), n the groups of a batch, u the unit vector of
the reference gradient, ρ the cosine between u and the true gradient ∇J. μ = E x, v = E|x|² − |μ|², and `on` marks the
same of responses that the target sampled itself.

    cosine of the expectation = u·μ / (ρ|μ|)
    component                 = u·μ / u·μ_on
    cosine of a batch         = u·μ / (ρ √(|μ|² + v/n))
    signal to noise           = ± ((u·μ)² / v) / ((u·μ_on)² / v_on)
    pull                      = u·μ_null / u·μ_on

|μ|² is the mean product of different blocks of problems, so that noise does not add to it. Every error is the
jackknife's over these blocks, deleted together in both samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ctpo.lab.fidelity.sketch import inner

Array = NDArray[np.float64]
FIGURES: Final = ("cosine", "component", "batch_cosine", "signal_to_noise")
"""The figures of an objective under one kind of advantages."""
_SMALLEST: Final = 1e-30


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error; NaN where the samples do not determine it."""

    value: float
    error: float

    @property
    def as_json(self) -> dict[str, float | None]:
        """Both numbers; None instead of NaN, which JSON lacks."""
        return {"value": _finite(self.value), "stderr": _finite(self.error)}


@dataclass(frozen=True)
class Moments:
    """What the figures need of each block of problems.

    Attributes:
        means: [blocks, 1 + P] mean gradient coordinates.
        squares: [blocks] mean squared norm of a group's gradient.
    """

    means: Array
    squares: Array

    @classmethod
    def of(cls, groups: Array, blocks: int) -> Moments:
        """The moments of groups [n, 1 + P], where equal numbers of groups in order make a block."""
        split = groups.reshape(blocks, -1, groups.shape[-1])
        return cls(split.mean(1), inner(split, split).mean(1))

    def without(self, block: int) -> Moments:
        """The moments without one block."""
        return Moments(np.delete(self.means, block, 0), np.delete(self.squares, block, 0))

    @property
    def signal(self) -> float:
        """u·μ."""
        return float(self.means[:, 0].mean())

    @property
    def norm_square(self) -> float:
        """|μ|², without bias; it can be below 0 where noise hides it."""
        count = len(self.means)
        total = self.means.sum(0)
        each = inner(self.means, self.means).sum()
        return float((inner(total, total) - each) / (count * (count - 1)))

    @property
    def variance(self) -> float:
        """v."""
        return max(float(self.squares.mean()) - self.norm_square, _SMALLEST)


def figures(off: Moments, on: Moments, rho: float, groups: float) -> dict[str, float]:
    """The figures of `FIGURES`.

    Args:
        off, on: of the objective, and of on-policy sampling.
        rho: the cosine between the reference direction and the true gradient.
        groups: groups of a batch.
    """
    square, signal = off.norm_square, off.signal
    strength = signal * abs(signal) / off.variance
    yardstick = on.signal**2 / on.variance
    norm = math.sqrt(max(square, 0.0) + off.variance / groups)
    return {
        "cosine": signal / (rho * math.sqrt(square)) if square > _SMALLEST else math.nan,
        "component": signal / on.signal if on.signal else math.nan,
        "batch_cosine": signal / (rho * norm) if rho > 0 else math.nan,
        "signal_to_noise": strength / yardstick if yardstick else math.nan,
    }


def jackknifed(
    statistic: Callable[[Sequence[Moments]], Array], moments: Sequence[Moments]
) -> tuple[Array, Array]:
    """A statistic's values and standard errors, all samples without the same block at a time.

    s.e.² = (K − 1)/K Σ_k (θ_(k) − mean θ_(k))² for K blocks.
    """
    count = len(moments[0].means)
    left_out = np.array([statistic([each.without(k) for each in moments]) for k in range(count)])
    error = np.sqrt((count - 1) * left_out.var(0))
    return statistic(moments), error


def estimates(off: Moments, on: Moments, rho: float, groups: float) -> dict[str, Estimate]:
    """The figures of `FIGURES`, with standard errors."""

    def statistic(both: Sequence[Moments]) -> Array:
        return np.array([*figures(both[0], both[1], rho, groups).values()])

    values, errors = jackknifed(statistic, [off, on])
    return {name: Estimate(float(v), float(e)) for name, v, e in zip(FIGURES, values, errors, strict=True)}


def component(off: Moments, on: Moments) -> Estimate:
    """u·μ / u·μ_on: the pull, for gradients under null advantages."""
    values, errors = jackknifed(
        lambda both: np.array([both[0].signal / both[1].signal if both[1].signal else math.nan]), [off, on]
    )
    return Estimate(float(values[0]), float(errors[0]))


def paired_difference(one: Moments, other: Moments, rho: float, groups: float, on: Moments) -> Estimate:
    """The difference of two objectives' batch cosines, on the same samples."""

    def statistic(three: Sequence[Moments]) -> Array:
        cosines = [figures(each, three[2], rho, groups)["batch_cosine"] for each in three[:2]]
        return np.array([cosines[0] - cosines[1]])

    values, errors = jackknifed(statistic, [one, other, on])
    return Estimate(float(values[0]), float(errors[0]))


def effective_share(weights: Array, mask: NDArray[np.bool_], positions: Sequence[int]) -> list[float | None]:
    """(Σ w)² / (n Σ w²) at each position, over the responses that reach it: 1 if all weigh the same.

    Args:
        weights: [N, T] of sampled tokens, position by position.
        mask: [N, T] where there is a token.
        positions: from 1.
    """
    shares: list[float | None] = []
    for position in positions:
        w = weights[:, position - 1][mask[:, position - 1]]
        square = np.square(w).sum()
        shares.append(float(w.sum() ** 2 / (len(w) * square)) if len(w) and square > 0 else None)
    return shares


def reference_cosine(half: float) -> float:
    """ρ, from the cosine c of the gradients of two halves: √(2c / (1 + c)); 0 if c is not above 0."""
    return math.sqrt(2 * half / (1 + half)) if half > 0 else 0.0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
