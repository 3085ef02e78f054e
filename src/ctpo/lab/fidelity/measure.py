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
jackknife's, over these blocks, deleted together in both samples, and over the parts of the reference sample, which
other problems gave: s.e.² is the sum of both. So the noise of u and of ρ is included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ctpo.lab.fidelity.reference import Reference
from ctpo.lab.fidelity.sketch import inner

Array = NDArray[np.float64]
FIGURES: Final = ("cosine", "component", "batch_cosine", "signal_to_noise")
"""The figures of an objective under one kind of advantages."""
LEVEL: Final = 0.05
"""Of the tests and intervals."""
_SMALLEST: Final = 1e-30


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and the degrees of freedom of that; NaN where the samples do not determine it."""

    value: float
    error: float
    freedom: float = math.inf

    @property
    def reach(self) -> float:
        """How far the interval of 95 % goes to either side."""
        return float(stdtrit(self.freedom, 1 - LEVEL / 2)) * self.error

    @property
    def as_json(self) -> dict[str, float | None]:
        """The value, its standard error, and its interval of 95 %; None instead of NaN, which JSON lacks."""
        return {
            "value": _finite(self.value),
            "stderr": _finite(self.error),
            "low": _finite(self.value - self.reach),
            "high": _finite(self.value + self.reach),
        }


@dataclass(frozen=True)
class Signals:
    """How much of the gradient of each block of problems lies along the reference.

    Attributes:
        signals: [blocks, 1 + R] mean product with u, and with u made without each part of the reference.
    """

    signals: Array

    def without(self, block: int) -> Self:
        """The same without one block."""
        return replace(self, signals=np.delete(self.signals, block, 0))

    def signal(self, part: int = 0) -> float:
        """u·μ, with the u of all parts of the reference (0), or without part 1, 2, …"""
        return float(self.signals[:, part].mean())


@dataclass(frozen=True)
class Moments(Signals):
    """What the figures need of each block of problems.

    Attributes:
        products: [blocks, blocks] products of the blocks' mean gradients with each other.
        squares: [blocks] mean squared norm of a group's gradient.
    """

    products: Array
    squares: Array

    @classmethod
    def of(cls, groups: Array, blocks: int, reference: Reference) -> Moments:
        """The moments of groups [n, R + P], where equal numbers of groups in order make a block."""
        coordinates = reference.coordinates(groups.reshape(blocks, -1, groups.shape[-1]))
        means = coordinates.mean(1)
        return cls(
            signals_of(groups, blocks, reference),
            inner(means[:, None], means[None]),
            inner(coordinates, coordinates).mean(1),
        )

    def without(self, block: int) -> Self:
        """The moments without one block."""
        products = np.delete(np.delete(self.products, block, 0), block, 1)
        return replace(super().without(block), products=products, squares=np.delete(self.squares, block))

    @property
    def norm_square(self) -> float:
        """|μ|², without bias; it can be below 0 where noise hides it."""
        count = len(self.products)
        return float((self.products.sum() - np.trace(self.products)) / (count * (count - 1)))

    @property
    def variance(self) -> float:
        """v."""
        return max(float(self.squares.mean()) - self.norm_square, _SMALLEST)


def signals_of(groups: Array, blocks: int, reference: Reference) -> Array:
    """[blocks, 1 + R] the signals of groups [n, R + P], where equal numbers of groups in order make a block."""
    split = groups.reshape(blocks, -1, groups.shape[-1])
    signals: Array = np.concatenate([reference.along_unit(split), reference.signals(split)], -1).mean(1)
    return signals


def figures(off: Moments, on: Moments, rho: float, groups: float, part: int = 0) -> dict[str, float]:
    """The figures of `FIGURES`.

    Args:
        off, on: of the objective, and of on-policy sampling.
        rho: the cosine between the reference direction and the true gradient.
        groups: groups of a batch.
        part: which part of the reference is left out, from 1; 0 for none.
    """
    square, signal, own = off.norm_square, off.signal(part), on.signal(part)
    strength = signal * abs(signal) / off.variance
    yardstick = own**2 / on.variance
    norm = math.sqrt(max(square, 0.0) + off.variance / groups)
    return {
        "cosine": signal / (rho * math.sqrt(square)) if square > _SMALLEST and rho > 0 else math.nan,
        "component": signal / own if own else math.nan,
        "batch_cosine": signal / (rho * norm) if rho > 0 and off.squares.any() else math.nan,
        "signal_to_noise": strength / yardstick if yardstick else math.nan,
    }


def jackknifed(
    statistic: Callable[[Sequence[Any], int], Array], moments: Sequence[Signals]
) -> list[Estimate]:
    """A statistic's values and standard errors, without each block and without each part of the reference in turn.

    s.e.² = Σ over both of (K − 1)/K Σ_k (θ_(k) − mean θ_(k))², for K blocks or parts. The degrees of freedom are
    those of Welch and Satterthwaite.

    Args:
        statistic: of the moments and of the number of the part that is left out (0 for none).
        moments: of samples on the same problems.
    """
    blocks, parts = len(moments[0].signals), moments[0].signals.shape[1] - 1
    left_out = [
        np.array([statistic([each.without(k) for each in moments], 0) for k in range(blocks)]),
        np.array([statistic(moments, part) for part in range(1, parts + 1)]),
    ]
    variances = [(len(each) - 1) * each.var(0) for each in left_out if len(each) > 1]
    freedoms = [len(each) - 1 for each in left_out if len(each) > 1]
    total: Array = np.sum(variances, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 / np.sum([v**2 / f for v, f in zip(variances, freedoms, strict=True)], 0)
    return [
        Estimate(
            float(value)
            if math.isfinite(variance)
            else math.nan,  # noise hides what only some samples determine
            math.sqrt(variance),
            float(free) if math.isfinite(free) else math.inf,
        )
        for value, variance, free in zip(statistic(moments, 0), total, freedom, strict=True)
    ]


def estimates(off: Moments, on: Moments, reference: Reference, groups: float) -> dict[str, Estimate]:
    """The figures of `FIGURES`, with standard errors."""
    rhos = [reference.cosine, *reference.cosines]

    def statistic(both: Sequence[Moments], part: int) -> Array:
        return np.array([*figures(both[0], both[1], rhos[part], groups, part).values()])

    return dict(zip(FIGURES, jackknifed(statistic, [off, on]), strict=True))


def component(off: Signals, on: Signals) -> Estimate:
    """u·μ / u·μ_on: the pull, for gradients under null advantages."""

    def statistic(both: Sequence[Signals], part: int) -> Array:
        own = both[1].signal(part)
        return np.array([both[0].signal(part) / own if own else math.nan])

    return jackknifed(statistic, [off, on])[0]


def paired_difference(one: Moments, other: Moments, reference: Reference, groups: float) -> Estimate:
    """The difference of two objectives' batch cosines, on the same samples."""
    rhos = [reference.cosine, *reference.cosines]

    def statistic(both: Sequence[Moments], part: int) -> Array:
        cosines = [figures(each, each, rhos[part], groups, part)["batch_cosine"] for each in both]
        return np.array([cosines[0] - cosines[1]])

    return jackknifed(statistic, [one, other])[0]


def reference_cosine(reference: Reference) -> Estimate:
    """ρ, with the jackknife's error over the parts of the reference."""
    without = np.array(reference.cosines)
    count = len(without)
    error = math.sqrt((count - 1) * float(without.var())) if count > 1 else math.nan
    return Estimate(reference.cosine, error, count - 1 if count > 1 else math.inf)


def effective_share(
    weights: Array, mask: NDArray[np.bool_], positions: Sequence[int], blocks: NDArray[np.int_]
) -> list[Estimate]:
    """(Σ w)² / (n Σ w²) at each position, over the responses that reach it: 1 if all weigh the same.

    The error is the jackknife's over the blocks of problems.

    Args:
        weights: [N, T] of sampled tokens, position by position.
        mask: [N, T] where there is a token.
        positions: from 1.
        blocks: [N] the block of each response, from 0.
    """
    shares: list[Estimate] = []
    for position in positions:
        reached = mask[:, position - 1] if position <= mask.shape[1] else np.zeros(len(mask), bool)
        w = weights[reached, position - 1] if reached.any() else np.zeros(0)
        largest = w.max(initial=0.0) or 1.0  # squares of large weights must not overflow
        of = blocks[reached]
        count = int(blocks.max()) + 1
        sums, squares, numbers = (
            np.bincount(of, each, count) for each in (w / largest, np.square(w / largest), np.ones(len(w)))
        )
        whole = _share(sums.sum(), squares.sum(), numbers.sum())
        without = np.array(
            [
                _share(sums.sum() - a, squares.sum() - b, numbers.sum() - n)
                for a, b, n in zip(sums, squares, numbers, strict=True)
            ]
        )
        shares.append(Estimate(whole, math.sqrt((count - 1) * float(without.var())), count - 1))
    return shares


def _share(total: float, square: float, number: float) -> float:
    return float(total**2 / (number * square)) if number > 0 and square > 0 else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
