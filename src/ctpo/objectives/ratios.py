"""Importance ratios: which tokens' ratios are multiplied into the weight of token t.

d_t = log π_θ(a_t|s_t) − log π_old(a_t|s_t) in nats, for the sampled tokens t = 1..T of a sequence. Each ratio is a
statistic of them, the log weight of token t, and says where its gradient flows:

gradient="token": sg(x_t) + (log π_t − sg(log π_t)), the value of the statistic with the gradient of the current token.
gradient="through": the statistic itself, differentiated through every log-prob in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.numerics import LOG_WEIGHT_CAP, SATURATION
from ctpo.objectives.tokens import Tokens

GradientPath = Literal["token", "through"]


class Ratio(Protocol):
    """A kind of importance ratio. A new one needs these four members, and is then right on every layout."""

    @property
    def gradient(self) -> GradientPath:
        """Where the gradient of the log weight flows: "token" or "through"."""
        ...

    @property
    def log_cap(self) -> float:
        """The largest log weight where the trust region allows no larger one, in nats."""
        ...

    def statistic(self, tokens: Tokens) -> Tensor:
        """The log ratio at every token, nats, differentiable through all the log-probs that it is made of."""
        ...

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        """The slopes of a loss by the log-probs, from its slopes by the statistics.

        The transpose of the linear map `statistic`. It carries the gradient where autograd cannot follow.
        """
        ...


def log_weight(ratio: Ratio, tokens: Tokens) -> Tensor:
    """The log importance weight at every token, in the compute dtype, with the ratio's gradient."""
    if ratio.gradient == "token":
        with torch.no_grad():
            statistic = ratio.statistic(tokens)
        return tokens.attach(statistic)
    return ratio.statistic(tokens).to(tokens.logps.dtype)


@dataclass(frozen=True)
class TokenRatio:
    """log r_t = d_t: the ratio of the token alone.

    "Proximal Policy Optimization Algorithms", arXiv 1707.06347, section 3.

    Example:
        # The preset grpo, clipped higher above.
        Objective(ratio=TokenRatio(), trust_region=RatioBand(0.2, 0.28), surrogate=MinClip())
    """

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = SATURATION

    def statistic(self, tokens: Tokens) -> Tensor:
        """d_t."""
        return tokens.log_ratio

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return slopes


@dataclass(frozen=True)
class CumulativeRatio:
    """log ρ_t = Σ_{s≤t} d_s: the ratio of the prefix through token t.

    "Rethinking Importance Sampling in LLM Policy Optimization: A Cumulative Token Perspective", arXiv 2605.07331.

    Example:
        # A band that widens as √t.
        Objective(ratio=CumulativeRatio(), trust_region=LogBand(0.2, 0.2, power=0.5), surrogate=MinClip())
    """

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_t = Σ_{s≤t} d_s."""
        return tokens.layout.prefix_sum(tokens.log_ratio)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return tokens.layout.suffix_sum(slopes)


@dataclass(frozen=True)
class DecayedRatio:
    """c_t = decay · c_{t−1} + d_t: the ratio of the prefix, in which a token counts less with every later one.

    A token s tokens back enters the product as r^(decay^s), so the weight spreads by at most 1/√(1 − decay²) times
    what one token does, however long the response. decay 1 is `CumulativeRatio` and decay 0 is `TokenRatio`. What the
    model did not sample leaves c as it is. The gradient is that of the current token. Ours, from arXiv 2605.07331.

    Attributes:
        decay: per sampled token, in [0, 1].

    Raises:
        ValueError: a decay outside of [0, 1].

    Example:
        DecayedRatio(0.9).decay  # 0.9
    """

    gradient: ClassVar[GradientPath] = "token"

    decay: float

    def __post_init__(self) -> None:
        if checks.number("decay", self.decay, 0.0) > 1:
            raise ValueError(f"decay: {self.decay!r} must be <= 1.")

    @property
    def log_cap(self) -> float:
        return SATURATION if self.decay == 0 else LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_t."""
        if self.decay == 0:
            return tokens.log_ratio
        if self.decay == 1:
            return tokens.layout.prefix_sum(tokens.log_ratio)
        return tokens.layout.decayed_sum(tokens.log_ratio, tokens.mask, self.decay)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return slopes


@dataclass(frozen=True)
class PrefixMeanRatio:
    """(1/t) Σ_{s≤t} d_s: the geometric mean of the prefix instead of its product.

    An ablation of arXiv 2605.07331.

    Example:
        Objective(ratio=PrefixMeanRatio(), trust_region=LogBand(0.05, 0.05), surrogate=MinClip())
    """

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_t / t."""
        return tokens.layout.prefix_sum(tokens.log_ratio) / tokens.positions().clamp(min=1)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return tokens.layout.suffix_sum(slopes / tokens.positions().clamp(min=1))


@dataclass(frozen=True)
class SequenceRatio:
    """log ρ_T = Σ_{s≤T} d_s: the exact ratio of the whole sequence.

    Example:
        # Importance sampling of whole sequences.
        Objective(ratio=SequenceRatio(), trust_region=Unbounded(), surrogate=Linear())
    """

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_T, the same at every token of the sequence."""
        return tokens.layout.sequence_sum(tokens.log_ratio)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return tokens.layout.sequence_sum(slopes)


@dataclass(frozen=True)
class SequenceMeanRatio:
    """(1/T) Σ_{s≤T} d_s: the ratio of the sequence, normalised by its length.

    "Group Sequence Policy Optimization", arXiv 2507.18071, equation 7.

    Example:
        # Bounds of the size that GSPO takes.
        Objective(ratio=SequenceMeanRatio(), trust_region=RatioBand(0.0003, 0.0004), surrogate=MinClip())
    """

    gradient: GradientPath = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """c_T / T."""
        length = tokens.layout.sequence_sum(tokens.mask).clamp(min=1)
        return tokens.layout.sequence_sum(tokens.log_ratio) / length

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        length = tokens.layout.sequence_sum(tokens.mask).clamp(min=1)
        return tokens.layout.sequence_sum(slopes) / length


@dataclass(frozen=True)
class MinPrefixRatio:
    """d_t + min_{s<t} d_s, and d_1 alone for the first token.

    The smallest ratio of one token strictly before t stands in for the product of the prefix. "A Step Back: Prefix
    Importance Ratio Stabilizes Policy Optimization" (MinPRO), arXiv 2601.22718.

    Example:
        Objective(ratio=MinPrefixRatio(), trust_region=RatioBand(0.2, 0.28), surrogate=MinClip())
    """

    gradient: ClassVar[GradientPath] = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """d_t + min_{s<t} d_s."""
        inf = torch.full_like(tokens.log_ratio, torch.inf)
        smallest = tokens.layout.prefix_min_before(torch.where(tokens.mask, tokens.log_ratio, inf))
        return tokens.log_ratio + torch.where(smallest.isinf(), torch.zeros_like(smallest), smallest)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return slopes


@dataclass(frozen=True)
class UnitRatio:
    """log 1 = 0: no correction, as in REINFORCE. The gradient of the current token's log-prob remains.

    Example:
        # REINFORCE.
        Objective(ratio=UnitRatio(), trust_region=Unbounded(), surrogate=StopGradientWeight())
    """

    gradient: ClassVar[GradientPath] = "token"
    log_cap: ClassVar[float] = LOG_WEIGHT_CAP

    def statistic(self, tokens: Tokens) -> Tensor:
        """0."""
        return torch.zeros_like(tokens.log_ratio)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return slopes


@dataclass(frozen=True)
class FlippedRatio:
    """d_t where A < 0, and −d_t elsewhere: the inverse ratio for tokens that are to become likelier.

    The gradient is that of the current token in both cases. "ASPO: Asymmetric Importance Sampling Policy Optimization",
    arXiv 2510.06062.

    Example:
        Objective(
            ratio=FlippedRatio(), trust_region=RatioBand(0.2, 0.2, ratio_dual=3.0), surrogate=SoftDualClip()
        )
    """

    gradient: ClassVar[GradientPath] = "token"
    log_cap: ClassVar[float] = SATURATION

    def statistic(self, tokens: Tokens) -> Tensor:
        """d_t or −d_t."""
        return torch.where(tokens.advantages < 0, tokens.log_ratio, -tokens.log_ratio)

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return slopes


@dataclass(frozen=True)
class PerTurnRatio:
    """A ratio that treats every turn as a sequence of its own: its sums and means begin anew at each turn.

    With `CumulativeRatio` it is the ratio of the turn through token t, and with `SequenceMeanRatio` the mean over the
    turn. The call then needs `turn_ids`.

    Attributes:
        ratio: the ratio within a turn.

    Example:
        Objective(
            ratio=PerTurnRatio(CumulativeRatio()), trust_region=LogBand(0.2, 0.2), surrogate=MinClip()
        ).needs_turns  # True
    """

    by_turn: ClassVar[bool] = True

    ratio: Ratio

    @property
    def gradient(self) -> GradientPath:
        return self.ratio.gradient

    @property
    def log_cap(self) -> float:
        return self.ratio.log_cap

    def statistic(self, tokens: Tokens) -> Tensor:
        """The ratio's value within the turn."""
        return self.ratio.statistic(tokens.by_turn())

    def pullback(self, tokens: Tokens, slopes: Tensor) -> Tensor:
        return self.ratio.pullback(tokens.by_turn(), slopes)
