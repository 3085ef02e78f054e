"""The definition of an objective: its parts applied one after the other in torch, and differentiated by autograd.

Every other path must give the same loss, token losses, statistics and gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.objectives.details import Details, describe
from ctpo.objectives.ratios import Ratio, log_weight
from ctpo.objectives.stats import summarise
from ctpo.objectives.surrogates import Surrogate, TokenTerms, ceiling_of, drop, truncate
from ctpo.objectives.tokens import Tokens
from ctpo.objectives.trust_regions import Limits, TrustRegion


@dataclass(frozen=True)
class Output:
    """The result of one call.

    Attributes:
        loss: scalar to minimise, reduced by the objective's reduction.
        token_loss: the shape of logps, not reduced, 0 where a token does not count. It is differentiable, except for
            sharded sequences whose gradient runs through the prefix.
        stats: detached 0-d tensors on the device of the inputs, see `ctpo.objectives.stats.finalise`.
        details: what happened to each token, if that was asked for.

    Example:
        out = objective(logps, old_logps, advantages, response_mask)
        out.loss.backward()
        out.token_loss.shape == logps.shape  # True
    """

    loss: Tensor
    token_loss: Tensor
    stats: dict[str, Tensor]
    details: Details | None = None


def compose(
    ratio: Ratio,
    trust_region: TrustRegion,
    surrogate: Surrogate,
    tokens: Tokens,
    advantages: Tensor,
    factor: Tensor,
    details: bool = False,
) -> Output:
    """The output of a call, whose loss is Σ_t factor_t · surrogate(log weight_t, A_t, bounds_t).

    Args:
        ratio, trust_region, surrogate: the parts of the objective.
        tokens: the call's tokens.
        advantages: [B, T] or [N], 0 where a token does not count.
        factor: the factor of each token's loss, broadcastable to the tokens.
        details: also say what happened to each token.
    """
    split = ratio.gradient == "through" and not tokens.layout.differentiable
    weight = _detached_leaf(ratio, tokens) if split else log_weight(ratio, tokens).expand_as(tokens.logps)
    limits = trust_region.limits(tokens, advantages, weight.detach())
    if split:
        with torch.enable_grad():
            terms, token_loss, loss = _apply(surrogate, ratio, weight, advantages, limits, tokens, factor)
        # Autograd stops where a process ends. The statistic is linear, so its transpose finishes the chain rule.
        (slopes,) = torch.autograd.grad(loss, weight)
        coefficients = ratio.pullback(tokens, slopes).to(slopes.dtype)
        loss = loss.detach() + (coefficients * (tokens.logps - tokens.logps.detach())).sum()
        token_loss = token_loss.detach()
    else:
        terms, token_loss, loss = _apply(surrogate, ratio, weight, advantages, limits, tokens, factor)
    truncated = truncate(weight.detach(), ceiling_of(limits, ratio.log_cap))
    stats = summarise(tokens, truncated, terms)
    described = (
        describe(tokens, truncated, _left(surrogate, truncated, advantages, terms, limits), terms)
        if details
        else None
    )
    return Output(loss, token_loss, stats, described)


@torch.no_grad()
def examine(
    ratio: Ratio, trust_region: TrustRegion, surrogate: Surrogate, tokens: Tokens, advantages: Tensor
) -> Details:
    """The details of the call that `compose` would make, without its loss and statistics."""
    weight = ratio.statistic(tokens).to(tokens.logps.dtype).expand_as(tokens.logps)
    limits = trust_region.limits(tokens, advantages, weight)
    ceiling = ceiling_of(limits, ratio.log_cap)
    terms = drop(surrogate.terms(weight, ceiling, advantages, limits, tokens), limits)
    truncated = truncate(weight, ceiling)
    return describe(tokens, truncated, _left(surrogate, truncated, advantages, terms, limits), terms)


def _left(
    surrogate: Surrogate, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits
) -> Tensor:
    """The log of the weight that multiplies the token's gradient after clipping; −inf if it gets no gradient."""
    left = surrogate.left(log_weight, advantages, terms, limits)
    if limits.dropped is None:
        return left
    return left.masked_fill(limits.dropped[0] | limits.dropped[1], -math.inf)


def _detached_leaf(ratio: Ratio, tokens: Tokens) -> Tensor:
    with torch.no_grad():
        value = ratio.statistic(tokens).to(tokens.logps.dtype).expand_as(tokens.logps)
    return value.contiguous().requires_grad_()


def _apply(
    surrogate: Surrogate,
    ratio: Ratio,
    weight: Tensor,
    advantages: Tensor,
    limits: Limits,
    tokens: Tokens,
    factor: Tensor,
) -> tuple[TokenTerms, Tensor, Tensor]:
    ceiling = ceiling_of(limits, ratio.log_cap)
    terms = drop(surrogate.terms(weight, ceiling, advantages, limits, tokens), limits)
    token_loss = torch.where(tokens.kept, terms.loss, torch.zeros_like(terms.loss))
    return terms, token_loss, (token_loss * factor).sum()
