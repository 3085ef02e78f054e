"""Statistics that a trust region may look at instead of a log ratio: how far the probability of a token has moved.

π and μ are the probabilities of the sampled token under the current policy and under the anchor. Both statistics are
positive where the token has become likelier, and negative where it has become less likely.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.objectives.tokens import Tokens


@dataclass(frozen=True)
class ProbabilityShift:
    """π − μ, a difference of probabilities.

    Its absolute value is the total variation distance between the two policies, if all other tokens are taken together
    as one. "Rethinking the Trust Region in LLM Reinforcement Learning" (DPPO), arXiv 2602.04879.

    Example:
        StatisticBand(0.15, 0.15, statistic=ProbabilityShift())  # no token moves by more than 0.15
    """

    def statistic(self, tokens: Tokens) -> Tensor:
        """π − μ at every token, 0 where not kept."""
        return tokens.logps.exp() - tokens.old_logps.exp()


@dataclass(frozen=True)
class BinaryKL:
    """sign(π − μ)·D, where D = μ ln(μ/π) + (1 − μ) ln((1 − μ)/(1 − π)), in nats.

    D is KL(μ ‖ π), if all other tokens are taken together as one. A probability of 1 leaves 1 − π at the smallest
    normal number, so that D is large and finite. arXiv 2602.04879.

    Example:
        StatisticBand(0.05, 0.05, statistic=BinaryKL())  # nats
    """

    def statistic(self, tokens: Tokens) -> Tensor:
        """The signed divergence at every token, nats, 0 where not kept."""
        tiny = torch.finfo(tokens.logps.dtype).tiny
        rest, old_rest = ((-x.expm1()).clamp(min=tiny) for x in (tokens.logps, tokens.old_logps))
        divergence = tokens.old_logps.exp() * -tokens.log_ratio + old_rest * (old_rest.log() - rest.log())
        return divergence.clamp(min=0) * tokens.log_ratio.sign()
