"""What the fused path needs to know of an objective, and which objectives it can run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from ctpo.objectives.numerics import EXP_CAP
from ctpo.objectives.ratios import (
    CumulativeRatio,
    MinPrefixRatio,
    PrefixMeanRatio,
    Ratio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
    UnitRatio,
)
from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight, Surrogate
from ctpo.objectives.trust_regions import Bases, LogBand, RatioBand, TrustRegion, Unbounded

RATIOS: Final = (
    TokenRatio,
    CumulativeRatio,
    PrefixMeanRatio,
    SequenceRatio,
    SequenceMeanRatio,
    MinPrefixRatio,
    UnitRatio,
)


@dataclass(frozen=True)
class Plan:
    """What the streaming pass needs to know of an objective."""

    ratio: Ratio
    bases: Bases
    surrogate: Surrogate

    @property
    def through(self) -> bool:
        """Whether the gradient runs through the statistic; a stop-gradient weight is a constant, whatever its ratio."""
        constant = isinstance(self.surrogate, StopGradientWeight)
        return self.ratio.gradient == "through" and not constant and not isinstance(self.ratio, TokenRatio)

    @property
    def scaled(self) -> bool:
        """Whether the bounds depend on the position."""
        return self.bases.power != 0.0

    def ceiling(self, length: int) -> float | None:
        """Ceiling of the log weight when one number serves all positions up to `length`, else None."""
        bounds = [b for b in (self.bases.upper, self.bases.dual) if b is not None and not math.isinf(b)]
        widest = max(bounds, default=-math.inf)
        reach = widest * max(1.0, float(max(length, 1)) ** self.bases.power)
        if not self.scaled or reach <= self.ratio.log_cap:
            return min(max(self.ratio.log_cap, widest), EXP_CAP)
        return None


def plan_for(ratio: Ratio, region: TrustRegion, surrogate: Surrogate) -> Plan | None:
    """Plan for three parts, or None when they need the composed path."""
    if type(ratio) not in RATIOS or type(surrogate) not in (MinClip, StopGradientWeight, Linear):
        return None
    if not isinstance(region, (LogBand, RatioBand, Unbounded)) or region.statistic is not None:
        return None
    return Plan(ratio, region.bases, surrogate)
