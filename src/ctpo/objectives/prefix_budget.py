"""A trust region with a budget: how far a token may move depends on how far the tokens before it have moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.divergences import ProbabilityShift
from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.tokens import Tokens
from ctpo.objectives.trust_regions import Limits

_QUANTILE: Final = 0.9


@dataclass(frozen=True)
class PrefixBudget:
    """Z_t ≤ min(δ, δ + b·Σ_{s<t} w_s − Σ_{s<t} Z_s) for a token that moves on, where Z_t = w_t·|π − μ|.

    w_t = w_min + (1 − w_min)·(T − t)/(T − 1) weighs early tokens more, and is 1 if T = 1. b is the 0.9 quantile of the
    response's |π − μ| (linear interpolation), clamped to [budget, 2·budget]. A token that moves back is never outside:
    the region bounds Z·sign(r − 1), above where r > 1 and below where r < 1. Use `OneSided` to bound only the side
    that the advantage pushes to.

    "Beyond Uniform Token-Level Trust Region in LLM Reinforcement Learning" (CPPO), arXiv 2606.10968, equations 8 to 11
    and 22.

    Attributes:
        delta: δ, the largest Z of a token whose prefix has used up no more than its budget; a difference of
            probabilities.
        w_min: the weight of the last token, in [0, 1].
        budget: the smallest b, a difference of probabilities per token.

    Raises:
        ValueError: a number out of range.

    Example:
        OneSided(PrefixBudget(delta=0.2, w_min=0.5, budget=0.02))
    """

    delta: float
    w_min: float
    budget: float

    def __post_init__(self) -> None:
        checks.number("delta", self.delta, 0.0)
        checks.finite("budget", self.budget, 0.0)
        if checks.number("w_min", self.w_min, 0.0) > 1:
            raise ValueError(f"w_min: {self.w_min!r} must be <= 1.")

    @torch.no_grad()
    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        layout, wide = tokens.layout, prefix_dtype(tokens.mask.device)
        shift = ProbabilityShift().statistic(tokens).to(wide)
        length = layout.sequence_sum(tokens.mask)
        rest = (length - tokens.positions()) / (length - 1).clamp(min=1)
        weight = torch.where(length > 1, self.w_min + (1 - self.w_min) * rest, torch.ones_like(rest))
        weight = torch.where(tokens.mask, weight, torch.zeros_like(weight))
        moved = weight * shift.abs()
        b = layout.sequence_quantile(shift.abs(), tokens.mask, _QUANTILE).clamp(self.budget, 2 * self.budget)
        granted, used = b * (layout.prefix_sum(weight) - weight), layout.prefix_sum(moved) - moved
        limit = (self.delta + granted - used).clamp(max=self.delta)
        r = tokens.log_ratio.exp()
        infinite = torch.full_like(limit, torch.inf)
        return Limits(
            lower=torch.where(r < 1, -limit, -infinite),
            upper=torch.where(r > 1, limit, infinite),
            statistic=torch.where(r < 1, -moved, moved),
        )
