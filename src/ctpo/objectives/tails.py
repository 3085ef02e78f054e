"""What a band would clip of log ratios that were counted, by position and by the sign of the advantage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_HALVINGS = 60  # of an interval: past the resolution of float64


@dataclass(frozen=True)
class Tails:
    """Counts of the cumulative log ratio in K bins of position and C + 1 cells; the outer cells are open.

    Attributes:
        edges: [C] upper edges of all cells but the last, nats, rising.
        gain, harm: [K, C + 1] tokens with a positive and with a negative advantage.
        positions: [K] mean position of a bin's tokens, at least 1.
    """

    edges: Tensor
    gain: Tensor
    harm: Tensor
    positions: Tensor

    @staticmethod
    def of(profile: Mapping[str, Tensor]) -> Tails | None:
        """Those of a profile that holds them (`cell_edge`, `gain`, `harm`, `position_mean`), else None."""
        names = ("cell_edge", "gain", "harm", "position_mean")
        if any(name not in profile for name in names):
            return None
        edges, gain, harm, positions = (profile[name].double().cpu() for name in names)
        return Tails(edges, gain, harm, positions.clamp(min=1))

    def clipped(self, low: float, high: float, power: float) -> tuple[Tensor, Tensor]:
        """[K] tokens below −low·t^power with A < 0, and above high·t^power with A > 0; linear within a cell."""
        growth = self.positions**power
        return _above(self.harm.flip(1), -self.edges.flip(0), low * growth), _above(
            self.gain, self.edges, high * growth
        )

    def clip_fraction(self, low: float, high: float, power: float) -> Tensor:
        """[K] the share of a bin's tokens clipped, 0 in an empty one."""
        below, above = self.clipped(low, high, power)
        return (below + above) / (self.gain + self.harm).sum(dim=1).clamp(min=1)

    def bases(self, power: float, share: float) -> tuple[float, float]:
        """(low, high), at least 0, of the band that clips this share of the tokens of either sign.

        Over all positions; where more than the share of one sign lies on the other side of 1, its bound is 0.
        """
        growth = self.positions**power
        sides = ((self.harm.flip(1), -self.edges.flip(0)), (self.gain, self.edges))
        low, high = (_base(counts, edges, growth, share) for counts, edges in sides)
        return low, high


def _base(counts: Tensor, edges: Tensor, growth: Tensor, share: float) -> float:
    """The smallest base ≥ 0 above which at most the share lies."""
    allowed = share * float(counts.sum())
    low, high = 0.0, float((edges[-1] / growth).max())
    if float(_above(counts, edges, growth * 0).sum()) <= allowed:
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(_above(counts, edges, middle * growth).sum()) > allowed:
            low = middle
        else:
            high = middle
    return high


def _above(counts: Tensor, edges: Tensor, thresholds: Tensor) -> Tensor:
    """[K] counts above a threshold a bin; beyond the last edge those of the open cell."""
    after = counts.flip(1).cumsum(1).flip(1)[:, 1:]  # [K, C] above each edge
    place = torch.searchsorted(edges, thresholds).clamp(1, len(edges) - 1)
    share = ((thresholds - edges[place - 1]) / (edges[place] - edges[place - 1])).clamp(0, 1)
    rows = torch.arange(len(counts))
    return after[rows, place - 1] * (1 - share) + after[rows, place] * share
