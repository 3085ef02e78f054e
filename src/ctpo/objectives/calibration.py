"""A trust region from the measured spread of the accumulated log ratio.

The spread at position t is taken as scale·t^power. A band that follows it lets the same share of the tokens out at
every position. How wide it has to be is read from the tails if they were counted, and otherwise from a normal
distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ctpo.objectives import checks

_NORMAL = NormalDist()
_STILL = 1e-9  # nats: what rounding leaves of the spread of equal values
_HALVINGS = 60  # of an interval: past the resolution of float64
_EDGE_ROUNDING = 1e-6  # edges come as float32, and a whole one must not become the next whole number


@dataclass(frozen=True)
class Tails:
    """Counts of the cumulative log ratio, by position and by the sign of the advantage.

    There are K bins of position and C + 1 cells of the log ratio. The outer cells are open.

    Attributes:
        edges: [C] upper edges of all cells but the last, nats, rising.
        gain, harm: [K, C + 1] numbers of tokens with a positive and with a negative advantage.
        positions: [K] the mean position of a bin's tokens, at least 1.
    """

    edges: Tensor
    gain: Tensor
    harm: Tensor
    positions: Tensor

    @staticmethod
    def of(profile: Mapping[str, Tensor]) -> Tails | None:
        """The tails of a profile, from `cell_edge`, `gain`, `harm` and `position_mean`; None if it lacks one."""
        names = ("cell_edge", "gain", "harm", "position_mean")
        if any(name not in profile for name in names):
            return None
        edges, gain, harm, positions = (profile[name].double().cpu() for name in names)
        return Tails(edges, gain, harm, positions.clamp(min=1))

    def clipped(self, low: float, high: float, power: float, drift: float = 0.0) -> tuple[Tensor, Tensor]:
        """Two [K]: the tokens with A < 0 below −low·t^power − drift·t, and with A > 0 above high·t^power − drift·t.

        A cell that a bound cuts counts in proportion.
        """
        growth, fall = self.positions**power, drift * self.positions
        return _above(self.harm.flip(1), -self.edges.flip(0), low * growth + fall), _above(
            self.gain, self.edges, high * growth - fall
        )

    def clip_fraction(self, low: float, high: float, power: float, drift: float = 0.0) -> Tensor:
        """[K] the share of a bin's tokens that a band clips; 0 in an empty bin."""
        below, above = self.clipped(low, high, power, drift)
        return (below + above) / (self.gain + self.harm).sum(dim=1).clamp(min=1)

    def bases(self, power: float, share: float, drift: float = 0.0) -> tuple[float, float]:
        """(low, high) of the band that clips this share of the tokens of either sign, over all positions; at least 0.

        If fewer tokens of a sign than the share moved towards its bound, that bound is 0.
        """
        growth, fall = self.positions**power, drift * self.positions
        sides = ((self.harm.flip(1), -self.edges.flip(0), fall), (self.gain, self.edges, -fall))
        low, high = (_base(counts, edges, growth, offset, share) for counts, edges, offset in sides)
        return low, high


@dataclass(frozen=True)
class Calibration:
    """A fitted spread, and the band that is proposed for it.

    Attributes:
        scale: the standard deviation of log ρ_t at t = 1, nats.
        power: the exponent of its growth in t.
        centre: the mean of log ρ_t (with a drift, what that leaves of it) in units of t^power, nats.
        scale_stderr: the standard error of `scale` (delta method); NaN if the bins leave no degree of freedom.
        power_stderr: the standard error of `power`, likewise; 0 if the power was given.
        low, high: the band [−low·t^power, high·t^power] in nats: `log_low` and `log_high` of the preset `ctpo`.
        positions: the mean position of every bin that was used.
        clip_fraction: the share of each bin's tokens that the band would clip, as `clip_fraction` of the statistics. It
            is counted from the tails if there are any. Otherwise it is that of normal log ratios with the bin's mean
            and standard deviation, and as many positive advantages as negative ones.
        share: the share of the tokens to clip, as asked for.
        drift: how fast the centre of the band falls, nats per token; 0 if it was not fitted.
    """

    scale: float
    power: float
    centre: float
    scale_stderr: float
    power_stderr: float
    low: float
    high: float
    positions: tuple[float, ...]
    clip_fraction: tuple[float, ...]
    share: float
    drift: float = 0.0

    @property
    def knobs(self) -> dict[str, float]:
        """The knobs of the preset `ctpo-calibrated` that give this band; `band_bases` of them is (low, high)."""
        reach = -_NORMAL.inv_cdf(self.share)
        scale, centre = (self.low + self.high) / (2 * reach), (self.high - self.low) / 2
        knobs = {"scale": scale, "power": self.power, "centre": centre, "share": self.share}
        return {**knobs, "log_drift": self.drift} if self.drift else knobs


def band_bases(scale: float, share: float, centre: float = 0.0) -> tuple[float, float]:
    """(low, high) such that N(centre, scale²) has the mass `share` above high, and again below −low; at least 0.

    A token is clipped above only for A > 0 and below only for A < 0. So the expected clip fraction is `share`, however
    frequent either sign is. The dual clip is not counted.

    Raises:
        ValueError: scale ≤ 0, share outside (0, 0.5), or a centre that is not finite.
    """
    checks.number("scale", scale, 0.0, strict=True)
    checks.finite("scale", scale)
    checks.finite("centre", centre)
    checks.number("share", share, 0.0, strict=True)
    if share >= 0.5:
        raise ValueError(f"share: {share!r} must be < 0.5; half the tokens lie beyond a band of no width.")
    reach = scale * -_NORMAL.inv_cdf(share)
    return max(reach - centre, 0.0), max(reach + centre, 0.0)


def calibrate(
    profile: Mapping[str, Tensor], share: float = 0.1, power: float | None = None, drift: bool = False
) -> Calibration:
    """The spread fitted to a profile, and the band that clips `share` of the tokens at every position.

    The fit is log std_i = log scale + power · log t_i + e_i over the bins, by least squares with the weights
    2(n_i − 1): the log of a standard deviation of n normal values has the variance 1/(2(n − 1)). Tokens of one response
    are correlated, so standard errors are scaled by the mean square of the residuals where that is above 1.

    If the profile holds the tails by the sign of the advantage, the bounds are those that clip the share of the tokens
    of either sign, counted (`Tails.bases`), because log ratios are seldom normal and drift the way their advantage
    points. Otherwise they are `band_bases` of scale and centre.

    With `drift`, the centre of the band follows the mean: mean_i = −drift · t_i + e_i is fitted by least squares with
    the weights n_i / std_i², and the bounds are those about −drift·t.

    Args:
        profile: from `position_profile`, of calls with a cumulative ratio (any preset of the ctpo family). `edge`,
            `count`, `log_ratio_mean` and `log_ratio_std` are read, and if they are there `position_mean` and the tails
            (`cell_edge`, `gain`, `harm`, see `Tails`). If it holds `spread`, a standard deviation that leaves out how
            the mean moves between the updates of a batch, that is fitted, with the weights 2·`spread_count`.
            `position_profile` says how to pool calls. Its `length` should
            be one that no token exceeds, because tokens past it are counted in the last bin.
        share: the share of the tokens to clip, in (0, 0.5).
        power: a fixed exponent, such as 0.5 for √t; None fits it too.
        drift: whether the centre of the band follows the mean, in proportion to t.

    Raises:
        ValueError: too few bins with two tokens and a spread, tails without extent, or an argument out of range.

    Example:
        band = calibrate(position_profile(objective(*batch, details=True).details, length=20), share=0.1)
        preset("ctpo-calibrated", **band.knobs)
    """
    usable = _usable_bins(profile)
    bins = list(usable.values())
    needed = 2 if power is None else 1
    if len(bins) < needed:
        raise ValueError(
            f"profile: {len(bins)} bins hold a spread; the fit needs {needed}. Use more bins, longer responses, or "
            "a policy that has moved."
        )
    x = [math.log(t) for t, _, _, _ in bins]
    y = [math.log(std) for _, _, _, std in bins]
    weights = [2 * (n - 1) for _, n, _, _ in bins]
    intercept, slope, intercept_stderr, slope_stderr = _line(x, y, weights, power)
    scale = math.exp(intercept)
    fall = _fall(bins) if drift else 0.0
    # Under independent steps the mean falls as t. What a drift leaves of it, or all, is averaged in units of t^power.
    total = math.fsum(n for _, n, _, _ in bins)
    centre = math.fsum(n * (mean + fall * t) / t**slope for t, n, mean, _ in bins) / total
    low, high = band_bases(scale, share, centre)
    clip_fraction = tuple(_clipped(low, high, t**slope, mean + fall * t, std) for t, _, mean, std in bins)
    tails = Tails.of(profile)
    if tails is not None:
        low, high = tails.bases(slope, share, fall)
        if low + high <= 0:
            raise ValueError(
                f"profile: fewer than a share of {share} of the tokens moved the way of their advantage."
            )
        clip_fraction = tuple(tails.clip_fraction(low, high, slope, fall)[list(usable)].tolist())
    return Calibration(
        scale=scale,
        power=slope,
        centre=centre,
        scale_stderr=scale * intercept_stderr,
        power_stderr=slope_stderr,
        low=low,
        high=high,
        positions=tuple(t for t, _, _, _ in bins),
        clip_fraction=clip_fraction,
        share=share,
        drift=fall,
    )


def _usable_bins(profile: Mapping[str, Tensor]) -> dict[int, tuple[float, float, float, float]]:
    """(mean position, count, mean, std) of the bins with two tokens and a spread, by their number.

    A variance that grows as t needs the mean position. If the profile lacks it, the middle of the bin is taken.
    """
    count, std = profile["count"], profile["log_ratio_std"]
    if "spread" in profile:
        moved = (count >= 2) & (std > _STILL)
        count, std = profile["spread_count"] + 1, torch.where(moved, profile["spread"], 0.0)
    columns = [each.double().tolist() for each in (profile["edge"], count, profile["log_ratio_mean"], std)]
    given = profile["position_mean"].tolist() if "position_mean" in profile else [None] * len(columns[0])
    bins, first = {}, 1
    for i, (edge, count, mean, std, position) in enumerate(zip(*columns, given, strict=True)):
        last = math.ceil(edge * (1 - _EDGE_ROUNDING))
        if last >= first and _usable(count, mean, std):
            bins[i] = ((first + last) / 2 if position is None else position, count, mean, std)
        first = last + 1
    return bins


def _usable(count: float, mean: float, std: float) -> bool:
    return count >= 2 and std > _STILL and math.isfinite(mean) and math.isfinite(std)


def _fall(bins: list[tuple[float, float, float, float]]) -> float:
    """Minus the slope of a line through 0 to the means of the bins, which are (position, count, mean, std)."""
    across = math.fsum(n / std**2 * t * t for t, n, _, std in bins)
    return -math.fsum(n / std**2 * t * mean for t, n, mean, std in bins) / across


def _line(
    x: list[float], y: list[float], weights: list[float], slope: float | None
) -> tuple[float, float, float, float]:
    """The intercept and slope of a weighted line, and their standard errors; a given slope is not fitted."""
    total = math.fsum(weights)
    x_mean = math.fsum(w * a for w, a in zip(weights, x, strict=True)) / total
    y_mean = math.fsum(w * b for w, b in zip(weights, y, strict=True)) / total
    across = math.fsum(w * (a - x_mean) ** 2 for w, a in zip(weights, x, strict=True))
    fitted = slope is None
    if slope is None:
        slope = (
            math.fsum(w * (a - x_mean) * (b - y_mean) for w, a, b in zip(weights, x, y, strict=True)) / across
        )
    intercept = y_mean - slope * x_mean
    residual = math.fsum(w * (b - intercept - slope * a) ** 2 for w, a, b in zip(weights, x, y, strict=True))
    free = len(x) - 1 - fitted
    inflation = max(1.0, residual / free) if free > 0 else math.nan
    slope_variance = inflation / across if fitted else 0.0
    intercept_variance = inflation / total + slope_variance * x_mean**2
    return intercept, slope, math.sqrt(intercept_variance), math.sqrt(slope_variance)


def _clipped(low: float, high: float, growth: float, mean: float, std: float) -> float:
    above = _NORMAL.cdf((mean - high * growth) / std)
    below = _NORMAL.cdf((-low * growth - mean) / std)
    return (above + below) / 2


def _base(counts: Tensor, edges: Tensor, growth: Tensor, offset: Tensor, share: float) -> float:
    """The smallest base, at least 0, for which at most the share of the tokens lies above base·growth + offset."""
    allowed = share * float(counts.sum())
    low, high = 0.0, float(((edges[-1] - offset) / growth).max())
    if float(_above(counts, edges, offset).sum()) <= allowed:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(_above(counts, edges, middle * growth + offset).sum()) > allowed:
            low = middle
        else:
            high = middle
    return high


def _above(counts: Tensor, edges: Tensor, thresholds: Tensor) -> Tensor:
    """[K] the counts above each bin's threshold. Beyond the last edge they are those of the open cell."""
    after = counts.flip(1).cumsum(1).flip(1)[:, 1:]  # [K, C] above each edge
    place = torch.searchsorted(edges, thresholds).clamp(1, len(edges) - 1)
    share = ((thresholds - edges[place - 1]) / (edges[place] - edges[place - 1])).clamp(0, 1)
    rows = torch.arange(len(counts))
    return after[rows, place - 1] * (1 - share) + after[rows, place] * share
