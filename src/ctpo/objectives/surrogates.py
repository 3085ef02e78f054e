"""Surrogates: what a token's loss does with its weight, its advantage and the bounds of its trust region.

ρ is the weight, A the advantage, [l, u] the bounds on the log weight, and d the dual bound. Losses are minimised.
Every surrogate reports which tokens lost their gradient, or a part of their weight, and at which bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ctpo.objectives.numerics import EXP_CAP
from ctpo.objectives.tokens import Tokens
from ctpo.objectives.trust_regions import Bound, Limits


@dataclass(frozen=True)
class TokenTerms:
    """The loss of each token before masking, and three disjoint masks of the tokens that a bound touched.

    `high` and `low` are the tokens beyond the upper and the lower bound, `dual` those beyond the dual bound.
    """

    loss: Tensor
    high: Tensor
    low: Tensor
    dual: Tensor

    @property
    def touched(self) -> tuple[Tensor, Tensor, Tensor]:
        """The three masks: high, low, dual."""
        return self.high, self.low, self.dual


class Surrogate(Protocol):
    """A rule that turns weights into token losses. A new one needs these two methods."""

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        """The loss of every token, and which tokens are clipped.

        Args:
            log_weight: log ρ at every token, nats, with gradient. Clip decisions see it before the ceiling.
            ceiling: the largest log weight that may be exponentiated, see `ceiling_of`.
            advantages: broadcastable to the tokens, without gradient, 0 where a token does not count.
            limits: the bounds.
            tokens: the call's tokens.
        """
        ...

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        """The log of the weight that multiplies the token's gradient after clipping; −inf if it gets no gradient.

        Args:
            log_weight: log ρ after the ceiling, detached.
            advantages: as in `terms`.
            terms: which tokens are clipped.
            limits: the bounds.
        """
        ...


def ceiling_of(limits: Limits, log_cap: float) -> Bound:
    """The ceiling of the log weight: max(cap, u, d), at most EXP_CAP.

    It rises with the region, so it never cuts inside of it. An absent (infinite) bound does not raise it, and neither
    do bounds on another statistic, which say nothing of the weight.
    """
    ceiling: Bound = log_cap
    for bound in () if limits.statistic is not None else (limits.upper, limits.dual):
        if isinstance(bound, Tensor):
            ceiling = torch.where(bound.isinf(), torch.zeros_like(bound), bound).clamp(min=ceiling)
        elif bound is not None and bound != math.inf:
            ceiling = ceiling.clamp(min=bound) if isinstance(ceiling, Tensor) else max(ceiling, bound)
    return ceiling.clamp(max=EXP_CAP) if isinstance(ceiling, Tensor) else min(ceiling, EXP_CAP)


def truncate(log_weight: Tensor, ceiling: Bound) -> Tensor:
    """The value min(log ρ, ceiling) with the gradient of log ρ.

    Example:
        truncate(torch.tensor([-1.0, 0.5, 3.0]), 2.0)  # [-1.0, 0.5, 2.0]
    """
    value = log_weight.detach()
    return log_weight + (value.clamp(max=ceiling) - value)


def drop(terms: TokenTerms, limits: Limits) -> TokenTerms:
    """The same terms without the loss of the tokens that a gate dropped; such a token counts at the gate's bound."""
    if limits.dropped is None:
        return terms
    above, below = limits.dropped
    gone = above | below
    loss = torch.where(gone, torch.zeros_like(terms.loss), terms.loss)
    return TokenTerms(
        loss, (terms.high & ~gone) | above, (terms.low & ~gone) | (below & ~above), terms.dual & ~gone
    )


def beyond(limits: Limits, value: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the tokens that have passed the bound they are pushed to: above with A > 0, and below with A < 0.

    Args:
        limits: the bounds.
        value: what they apply to if they have no statistic of their own, detached.
        advantages: broadcastable to the tokens.
    """
    decider = value if limits.statistic is None else limits.statistic
    return (advantages > 0) & (decider > limits.upper), (advantages < 0) & (decider < limits.lower)


def at_bound(limits: Limits, value: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """The values, with those of the marked tokens at their bounds. Bounds on another statistic change no value."""
    if limits.statistic is not None:
        return value
    return torch.where(high, limits.upper, torch.where(low, limits.lower, value)).to(value.dtype)


def no_token(like: Tensor) -> Tensor:
    """A mask of the shape of a tensor that is false everywhere."""
    return torch.zeros_like(like, dtype=torch.bool)


@dataclass(frozen=True)
class MinClip:
    """−min(ρA, clip(ρ, e^l, e^u) A), and for A < 0 no more than −e^d A.

    It is computed by decisions. A token beyond u with A > 0, beyond l with A < 0, or beyond d with A < 0 takes the
    value of the bound and loses its gradient.

    "Proximal Policy Optimization Algorithms", arXiv 1707.06347, equation 7. Dual clip: "Mastering Complex Control in
    MOBA Games with Deep Reinforcement Learning", arXiv 1912.09729, equation 5.

    Example:
        Objective(ratio=TokenRatio(), trust_region=RatioBand(0.2, 0.2), surrogate=MinClip())(*batch).loss
    """

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        value = log_weight.detach()
        decider = value if limits.statistic is None else limits.statistic
        high, low = beyond(limits, value, advantages)
        frozen, dual = at_bound(limits, value, high, low), no_token(high)
        if limits.dual is not None:
            dual = (advantages < 0) & (decider > limits.dual)
            if limits.statistic is None:
                frozen = torch.where(dual, limits.dual, frozen).to(value.dtype)
        exponent = truncate(torch.where(high | low | dual, frozen, log_weight), ceiling)
        return TokenTerms(-advantages * exponent.exp(), high, low, dual)

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        return log_weight.masked_fill(terms.high | terms.low | terms.dual, -math.inf)


@dataclass(frozen=True)
class StopGradientWeight:
    """−sg(clip(ρ, e^l, e^u)) A log π_t: the region truncates the weight, and every token keeps its gradient.

    `high` and `low` mark truncated weights. A weight takes the value of its bound also if the bounds are on another
    log ratio, so do not use it with bounds in another unit. With a unit ratio this is REINFORCE. "MiniMax-M1: Scaling
    Test-Time Compute Efficiently with Lightning Attention" (CISPO), arXiv 2506.13585, equations 4 and 5.

    Example:
        # Weights up to 5.
        Objective(
            ratio=TokenRatio(), trust_region=RatioBand(1.0, 4.0), surrogate=StopGradientWeight()
        )(*batch).loss
    """

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        value = log_weight.detach()
        high, low = limits.outside(value)
        weight = torch.where(high, limits.upper, torch.where(low, limits.lower, value)).to(value.dtype)
        weight = weight.clamp(max=ceiling).exp()
        return TokenTerms(-advantages * weight * tokens.logps, high, low, no_token(high))

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        bound = torch.where(terms.high, limits.upper, torch.where(terms.low, limits.lower, log_weight))
        return bound.to(log_weight.dtype)


@dataclass(frozen=True)
class Gated:
    """−1[l ≤ statistic ≤ u] ρA: tokens outside the region drop out, whatever the sign of A.

    Example:
        Objective(ratio=TokenRatio(), trust_region=RatioBand(0.5, 1.0), surrogate=Gated())(*batch).loss
    """

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        high, low = limits.outside(log_weight.detach())
        zero = torch.zeros_like(log_weight)
        inside = torch.where(high | low, zero, truncate(log_weight, ceiling))
        loss = torch.where(high | low, zero, -advantages * inside.exp())
        return TokenTerms(loss, high, low, no_token(high))

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        return log_weight.masked_fill(terms.high | terms.low | terms.dual, -math.inf)


@dataclass(frozen=True)
class Linear:
    """−ρA: the bounds play no part.

    Example:
        Objective(ratio=SequenceRatio(), trust_region=Unbounded(), surrogate=Linear())(*batch).loss
    """

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        loss = -advantages * truncate(log_weight, ceiling).exp()
        return TokenTerms(loss, no_token(loss), no_token(loss), no_token(loss))

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        return log_weight


@dataclass(frozen=True)
class ClippedInside:
    """−ρA, where ρ is a `ClippedMeanRatio`. The bounds are those inside of the mean, on the ratio of one token.

    `high` and `low` mark the tokens that were clipped there, and so do not move the mean.

    Example:
        region = LogBand(0.4, 0.4, statistic=TokenRatio())
        Objective(ratio=ClippedMeanRatio(region), trust_region=region, surrogate=ClippedInside())(*batch).loss
    """

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        high, low = beyond(limits, tokens.log_ratio.detach(), tokens.advantages)
        loss = -advantages * truncate(log_weight, ceiling).exp()
        return TokenTerms(loss, high, low, no_token(high))

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        return log_weight.masked_fill(terms.high | terms.low, -math.inf)
