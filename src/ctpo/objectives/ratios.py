"""Importance ratios: which tokens' ratios are multiplied into the weight of token t.

d_t = log π_θ(a_t|s_t) − log π_old(a_t|s_t); T counts the generated tokens of a sequence. Each ratio returns
log weights with their gradient path. `gradient="token"` is the stop-gradient decomposition: the value of the
whole statistic, the gradient of the current token only. `gradient="through"` differentiates the statistic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ctpo.objectives.numerics import LOG_WEIGHT_CAP, SATURATION
from ctpo.objectives.tokens import Tokens

GradientPath = Literal["token", "through"]


class Ratio(Protocol):
    """A family of importance ratios."""

    @property
    def gradient(self) -> GradientPath:
        """Where the gradient of the log weight flows."""
        ...

    @property
    def log_cap(self) -> float:
        """Ceiling of the log weight outside the trust region."""
        ...

    def statistic(self, tokens: Tokens) -> Tensor:
        """Log ratio at every token, differentiable through all the log-probs it is made of."""
        ...

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """Transpose of the linear map `statistic`: slopes of the statistics to slopes of the log-probs."""
        ...


def log_weight(ratio: Ratio, tokens: Tokens) -> Tensor:
    """Log importance weight at every token, in the compute dtype, with the ratio's gradient path."""
    if ratio.gradient == "token":
        with torch.no_grad():
            statistic = ratio.statistic(tokens)
        return tokens.attach(statistic)
    return ratio.statistic(tokens).to(tokens.logps.dtype)


@dataclass(frozen=True)
class TokenRatio:
    """log r_t = d_t (PPO, Schulman et al. 2017, section 3)."""

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = SATURATION

    def statistic(self, tokens: Tokens) -> Tensor:
        """d_t."""
        return tokens.log_ratio

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """See `Ratio.pullback`."""
        return slopes


@dataclass(frozen=True)
class CumulativeRatio:
    """log ρ_t = Σ_{s≤t} d_s (CTPO, arXiv 2605.07331, section "cumulative token")."""

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_t = Σ_{s≤t} d_s."""
        return tokens.layout.prefix_sum(tokens.log_ratio)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """See `Ratio.pullback`."""
        return tokens.layout.suffix_sum(slopes)


@dataclass(frozen=True)
class PrefixMeanRatio:
    """(1/t) Σ_{s≤t} d_s: geometric mean of the prefix instead of its product (CTPO's ablation)."""

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_t / t."""
        return tokens.layout.prefix_sum(tokens.log_ratio) / tokens.positions().clamp(min=1)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """See `Ratio.pullback`."""
        return tokens.layout.suffix_sum(slopes / tokens.positions().clamp(min=1))


@dataclass(frozen=True)
class SequenceRatio:
    """log ρ_T = Σ_{s≤T} d_s: the exact trajectory correction."""

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_T, the same at every token of the sequence."""
        return tokens.layout.sequence_sum(tokens.log_ratio)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """See `Ratio.pullback`."""
        return tokens.layout.sequence_sum(slopes)


@dataclass(frozen=True)
class SequenceMeanRatio:
    """(1/T) Σ_{s≤T} d_s: length-normalised sequence ratio (GSPO, arXiv 2507.18071, equation 7)."""

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_T / T."""
        length = tokens.layout.sequence_sum(tokens.mask).clamp(min=1)
        return tokens.layout.sequence_sum(tokens.log_ratio) / length

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """See `Ratio.pullback`."""
        length = tokens.layout.sequence_sum(tokens.mask).clamp(min=1)
        return tokens.layout.sequence_sum(slopes) / length


@dataclass(frozen=True)
class MinPrefixRatio:
    """d_t + min_{s<t} d_s, and d_1 alone for the first token (MinPRO, arXiv 2601.22718).

    The smallest single-token ratio strictly before t stands in for the product of the prefix.
    """

    gradient: ClassVar[GradientPath] = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """d_t + min_{s<t} d_s."""
        inf = torch.full_like(tokens.log_ratio, torch.inf)
        smallest = tokens.layout.prefix_min_before(torch.where(tokens.mask, tokens.log_ratio, inf))
        return tokens.log_ratio + torch.where(smallest.isinf(), torch.zeros_like(smallest), smallest)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """See `Ratio.pullback`."""
        return slopes


@dataclass(frozen=True)
class UnitRatio:
    """log 1: no correction (REINFORCE); the gradient of the current token's log-prob remains."""

    gradient: ClassVar[GradientPath] = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """0."""
        return torch.zeros_like(tokens.log_ratio)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """See `Ratio.pullback`."""
        return slopes
