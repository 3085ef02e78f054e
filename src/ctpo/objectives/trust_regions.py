"""Trust regions: the interval of a log statistic within which a token keeps its gradient.

A region may look at a statistic of its own. If `statistic` is None, it looks at the ratio that weighs, and a clipped
token takes the value of the bound. A separate statistic only decides which tokens are clipped; a clipped token keeps
its own weight and loses its gradient. (`StopGradientWeight` differs: its weights take the value of the bound.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.tokens import Tokens
from ctpo.old_names import old_fields

Bound = Tensor | float


class Statistic(Protocol):
    """A number per token that bounds may apply to. Every ratio is one, and so are the divergences."""

    def statistic(self, tokens: Tokens) -> Tensor:
        """The value at every token. Its unit is that of the bounds."""
        ...


@dataclass(frozen=True)
class Limits:
    """The bounds of a call, each one number or one per token.

    Without a statistic of their own, bounds apply to the log weight, in nats.
    """

    lower: Bound
    upper: Bound
    dual: Bound | None = None
    statistic: Tensor | None = None
    """What the bounds apply to, detached; None means the log weight itself."""
    dropped: tuple[Tensor, Tensor] | None = None
    """Masks of the tokens above and below a gate. They leave the loss, whatever the surrogate does with the bounds."""

    def outside(self, log_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of the tokens above and below the bounds, whatever a gate does."""
        decider = log_weight if self.statistic is None else self.statistic
        return decider > self.upper, decider < self.lower


class TrustRegion(Protocol):
    """A rule that gives every token its bounds."""

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """The bounds at every token.

        Args:
            tokens: the call's tokens.
            advantages: broadcastable to the tokens, 0 where a token does not count.
            log_weight: the log weights, detached, nats.
        """
        ...


@dataclass(frozen=True)
class Bases:
    """Bounds in log space at t = 1, in nats. At position t they are multiplied by t^power, and lowered by drift·t."""

    lower: float
    upper: float
    dual: float | None
    power: float
    drift: float = 0.0
    """Nats per token."""

    def at(self, tokens: Tokens, statistic: Statistic | None, length: Tensor | None = None) -> Limits:
        """The bounds at every token, on a statistic of their own unless that is None.

        Args:
            tokens: the call's tokens.
            statistic: what the bounds apply to.
            length: what takes the place of the position t, broadcastable to the tokens.
        """
        own = None if statistic is None else statistic.statistic(tokens).detach().to(tokens.logps.dtype)
        if self.power == 0.0 and self.drift == 0.0:
            return Limits(self.lower, self.upper, self.dual, own)
        place = (tokens.positions() if length is None else length).to(tokens.logps.dtype)
        scale = place.pow(self.power)

        def scaled(base: float) -> Bound:
            if math.isinf(base):
                return base
            return scale * base - self.drift * place if self.drift else scale * base

        dual = None if self.dual is None else scaled(self.dual)
        return Limits(scaled(self.lower), scaled(self.upper), dual, own)


@old_fields(low="log_low", high="log_high", dual="log_dual")
@dataclass(frozen=True)
class LogBand:
    """[−log_low·t^power, log_high·t^power] on a log ratio, with a dual clip at log_dual·t^power.

    All three lie lower by log_drift·t, if that is given.
    t is the number of sampled tokens so far, from 1. power 0.5 follows the spread of a sum of independent steps, 0 is a
    fixed band, and −0.5 fits a mean. "Rethinking Importance Sampling in LLM Policy Optimization: A Cumulative Token
    Perspective", arXiv 2605.07331.

    Attributes:
        log_low, log_high: distances of the bounds from 0 at t = 1, nats, at least 0.
        log_dual: bound for A < 0, nats at t = 1; None for no dual clip.
        power: exponent of t.
        statistic: what the bounds apply to; None is the ratio that weighs.
        log_drift: how fast the centre of the band falls, nats per token. The mean of log ρ_t under the old policy is
            −KL of the first t actions, so it falls as t while the spread grows as √t.

    Raises:
        ValueError: a bound below 0, or a power or a drift that is not finite.

    Example:
        LogBand(log_low=0.2, log_high=0.3, power=0.5).bases.upper  # 0.3
    """

    log_low: float
    log_high: float
    log_dual: float | None = None
    power: float = 0.0
    statistic: Statistic | None = None
    log_drift: float = 0.0

    def __post_init__(self) -> None:
        checks.number("log_low", self.log_low, 0.0)
        checks.number("log_high", self.log_high, 0.0)
        checks.finite("power", self.power)
        checks.finite("log_drift", self.log_drift)
        if self.log_dual is not None:
            checks.number("log_dual", self.log_dual, 0.0)

    @property
    def bases(self) -> Bases:
        """The bounds at t = 1."""
        return Bases(-self.log_low, self.log_high, self.log_dual, self.power, self.log_drift)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        return self.bases.at(tokens, self.statistic)


@old_fields(low="ratio_low", high="ratio_high", dual="ratio_dual")
@dataclass(frozen=True)
class RatioBand:
    """[1 − ratio_low, 1 + ratio_high] on a ratio, with a dual clip at ratio_dual. No lower bound if ratio_low ≥ 1.

    "Proximal Policy Optimization Algorithms", arXiv 1707.06347, equation 7. Dual clip: "Mastering Complex Control in
    MOBA Games with Deep Reinforcement Learning", arXiv 1912.09729, equation 5.

    Attributes:
        ratio_low, ratio_high: distances of the bounds from a ratio of 1, at least 0.
        ratio_dual: bound for A < 0, a ratio of at least 1; None for no dual clip.
        statistic: what the bounds apply to; None is the ratio that weighs.

    Raises:
        ValueError: a bound out of range.

    Example:
        RatioBand(ratio_low=0.2, ratio_high=0.28)  # 0.8 to 1.28
    """

    ratio_low: float
    ratio_high: float
    ratio_dual: float | None = None
    statistic: Statistic | None = None

    def __post_init__(self) -> None:
        checks.number("ratio_low", self.ratio_low, 0.0)
        checks.number("ratio_high", self.ratio_high, 0.0)
        if self.ratio_dual is not None:
            checks.number("ratio_dual", self.ratio_dual, 1.0)

    @property
    def bases(self) -> Bases:
        """The bounds in log space, the same at every position."""
        lower = math.log1p(-self.ratio_low) if self.ratio_low < 1 else -math.inf
        return Bases(
            lower,
            math.log1p(self.ratio_high),
            None if self.ratio_dual is None else math.log(self.ratio_dual),
            0.0,
        )

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        return self.bases.at(tokens, self.statistic)


@dataclass(frozen=True)
class Unbounded:
    """No trust region: every token keeps its gradient.

    Example:
        Objective(ratio=TokenRatio(), trust_region=Unbounded(), surrogate=StopGradientWeight())
    """

    statistic: ClassVar[None] = None
    bases: ClassVar[Bases] = Bases(-math.inf, math.inf, None, 0.0)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        return Limits(-math.inf, math.inf)


@dataclass(frozen=True)
class LengthBand:
    """[−log_low·T^power, log_high·T^power] on a log ratio: the band of `LogBand` at the end of the sequence.

    T is the number of sampled tokens of the sequence, so all of its tokens have the same bounds. power 0.5 follows the
    spread of a sum over a whole sequence. "Clip Your Sequences Fairly: Enforcing Length Fairness for Sequence-Level RL"
    (FSPO), arXiv 2509.09177.

    Attributes:
        log_low, log_high: distances of the bounds from 0 at T = 1, nats, at least 0.
        power: exponent of T.

    Raises:
        ValueError: a bound below 0, or a power that is not finite.

    Example:
        LengthBand(log_low=0.2, log_high=0.3, power=0.5)
    """

    log_low: float
    log_high: float
    power: float = 0.5

    def __post_init__(self) -> None:
        checks.number("log_low", self.log_low, 0.0)
        checks.number("log_high", self.log_high, 0.0)
        checks.finite("power", self.power)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        length = tokens.layout.sequence_sum(tokens.mask).clamp(min=1)
        return Bases(-self.log_low, self.log_high, None, self.power).at(tokens, None, length)


@dataclass(frozen=True)
class StatisticBand:
    """[−delta_low, delta_high] on a statistic that is no log ratio, in the statistic's own unit.

    Attributes:
        delta_low, delta_high: distances of the bounds from 0, at least 0.
        statistic: what the bounds apply to.

    Raises:
        ValueError: a bound below 0.

    Example:
        StatisticBand(delta_low=0.15, delta_high=0.15, statistic=ProbabilityShift())
    """

    delta_low: float
    delta_high: float
    statistic: Statistic

    def __post_init__(self) -> None:
        checks.number("delta_low", self.delta_low, 0.0)
        checks.number("delta_high", self.delta_high, 0.0)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        return Bases(-self.delta_low, self.delta_high, None, 0.0).at(tokens, self.statistic)


@dataclass(frozen=True)
class OneSided:
    """A region that bounds only the way a token is pushed: above where A > 0, and below where A < 0.

    The way back stays open. `MinClip` decides so by itself; `Gated` and `StopGradientWeight` do not.

    Example:
        OneSided(LogBand(0.2, 0.3))
    """

    region: TrustRegion

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        both = self.region.limits(tokens, advantages, log_weight)
        lower = torch.where(advantages < 0, *_pair(both.lower, -math.inf, log_weight))
        upper = torch.where(advantages > 0, *_pair(both.upper, math.inf, log_weight))
        return replace(both, lower=lower, upper=upper)


@dataclass(frozen=True)
class BySign:
    """Two regions, one for each sign of the advantage: four bounds.

    If one of them looks at a statistic of its own, clipped tokens of both keep their own weight.

    Attributes:
        gain: the region where A ≥ 0.
        harm: the region where A < 0.

    Example:
        BySign(gain=LogBand(0.2, 0.3), harm=LogBand(0.1, 0.2))
    """

    gain: TrustRegion
    harm: TrustRegion

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        gain, harm = (region.limits(tokens, advantages, log_weight) for region in (self.gain, self.harm))

        def chosen(a: Bound, b: Bound) -> Tensor:
            return torch.where(advantages < 0, *_pair(b, a, log_weight))

        own = gain.statistic is not None or harm.statistic is not None
        dual = gain.dual is not None or harm.dual is not None
        dropped = None
        if gain.dropped is not None or harm.dropped is not None:
            none = torch.zeros_like(log_weight, dtype=torch.bool)
            (above, below), (above_harm, below_harm) = (x.dropped or (none, none) for x in (gain, harm))
            negative = advantages < 0
            dropped = torch.where(negative, above_harm, above), torch.where(negative, below_harm, below)
        return Limits(
            lower=chosen(gain.lower, harm.lower),
            upper=chosen(gain.upper, harm.upper),
            dual=chosen(*(math.inf if x.dual is None else x.dual for x in (gain, harm))) if dual else None,
            statistic=chosen(*(log_weight if x.statistic is None else x.statistic for x in (gain, harm)))
            if own
            else None,
            dropped=dropped,
        )


@dataclass(frozen=True)
class Both:
    """Two regions at once: a token outside of the gate leaves the loss, and any other obeys the region.

    What left stays in the denominators.

    Attributes:
        region: its bounds go to the surrogate.
        gate: tokens outside of its bounds have neither loss nor gradient.

    Example:
        Both(region=LogBand(0.2, 0.3), gate=LogBand(0.5, 0.5, statistic=TokenRatio()))
    """

    region: TrustRegion
    gate: TrustRegion

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        bounds, gate = (part.limits(tokens, advantages, log_weight) for part in (self.region, self.gate))
        above, below = gate.outside(log_weight)
        for inner in (bounds.dropped, gate.dropped):
            if inner is not None:
                above, below = above | inner[0], below | inner[1]
        return replace(bounds, dropped=(above, below))


@dataclass(frozen=True)
class PerTurnRegion:
    """A region that treats every turn as a sequence: its positions and lengths begin anew at each turn.

    Example:
        PerTurnRegion(LogBand(0.2, 0.3, power=0.5))  # t counts from the start of each turn
    """

    by_turn: ClassVar[bool] = True

    region: TrustRegion

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        return self.region.limits(tokens.by_turn(), advantages, log_weight)


def _pair(first: Bound, second: Bound, like: Tensor) -> tuple[Tensor, Tensor]:
    """Two bounds as tensors of the dtype of a third. `torch.where` would round two numbers to float32."""
    a, b = (
        x if isinstance(x, Tensor) else torch.full((), x, dtype=like.dtype, device=like.device)
        for x in (first, second)
    )
    return a, b
