"""A ratio whose tokens are clipped before they are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ctpo.objectives.numerics import SATURATION
from ctpo.objectives.ratios import GradientPath
from ctpo.objectives.surrogates import at_bound, beyond
from ctpo.objectives.tokens import Tokens
from ctpo.objectives.trust_regions import TrustRegion


@dataclass(frozen=True)
class ClippedMeanRatio:
    """(1/T) Σ_{s≤T} d̃_s, where d̃ is d, clipped at the bound that the advantage pushes the token to, and 0 where A = 0.

    A clipped token has no gradient. A region with a statistic of its own leaves d̃ = d, and only takes the gradient.
    Use it with `ClippedInside` and the same bounds on the statistic `TokenRatio()`, which report the clipped tokens.
    "Geometric-Mean Policy Optimization" (GMPO), arXiv 2507.20673.

    Attributes:
        region: the bounds on the ratio of one token.

    Example:
        region = LogBand(0.4, 0.4, statistic=TokenRatio())
        Objective(ratio=ClippedMeanRatio(region), trust_region=region, surrogate=ClippedInside())
    """

    region: TrustRegion
    gradient: ClassVar[GradientPath] = "through"
    log_cap: ClassVar[float] = SATURATION

    def statistic(self, tokens: Tokens) -> Tensor:
        """The mean over the sequence, the same at each of its tokens."""
        fixed, frozen = self._clipped(tokens)
        kept = torch.where(fixed, frozen, tokens.log_ratio)
        return tokens.layout.sequence_sum(kept) / _length(tokens)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        fixed, _ = self._clipped(tokens)
        slope = (tokens.layout.sequence_sum(slopes) / _length(tokens)).expand_as(tokens.logps)
        return torch.where(fixed, torch.zeros_like(slope), slope)

    def _clipped(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """A mask of the tokens that do not move the mean, and the values of all tokens after clipping."""
        own = tokens.log_ratio.detach()
        limits = self.region.limits(tokens, tokens.advantages, own)
        high, low = beyond(limits, own, tokens.advantages)
        idle = tokens.advantages == 0
        return high | low | idle, at_bound(limits, own, high, low).masked_fill(idle, 0.0)


def _length(tokens: Tokens) -> Tensor:
    return tokens.layout.sequence_sum(tokens.mask).clamp(min=1)
