"""Trust regions: the interval of a log statistic within which a token keeps its gradient.

A region may look at a statistic of its own. If `statistic` is None, it looks at the ratio that weighs, and a clipped
token takes the value of the bound. A separate statistic only decides which tokens are clipped; a clipped token keeps
its own weight and loses its gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.ratios import Ratio
from ctpo.objectives.tokens import Tokens
from ctpo.old_names import old_fields

Bound = Tensor | float


@dataclass(frozen=True)
class Limits:
    """The bounds of a call in log space, in nats, each one number or one per token.

    `statistic` is detached and what the bounds apply to; None means the log weight itself.
    """

    lower: Bound
    upper: Bound
    dual: Bound | None = None
    statistic: Tensor | None = None


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
    """Bounds in log space at t = 1, in nats. At position t they are multiplied by t^power."""

    lower: float
    upper: float
    dual: float | None
    power: float

    def at(self, tokens: Tokens, statistic: Ratio | None) -> Limits:
        """The bounds at every token, on a statistic of their own unless that is None."""
        own = None if statistic is None else statistic.statistic(tokens).detach().to(tokens.logps.dtype)
        if self.power == 0.0:
            return Limits(self.lower, self.upper, self.dual, own)
        scale = tokens.positions().to(tokens.logps.dtype).pow(self.power)

        def scaled(base: float) -> Bound:
            return base if math.isinf(base) else scale * base

        dual = None if self.dual is None else scaled(self.dual)
        return Limits(scaled(self.lower), scaled(self.upper), dual, own)


@old_fields(low="log_low", high="log_high", dual="log_dual")
@dataclass(frozen=True)
class LogBand:
    """[−log_low·t^power, log_high·t^power] on a log ratio, with a dual clip at log_dual·t^power.

    t is the number of sampled tokens so far, from 1. power 0.5 follows the spread of a sum of independent steps, 0 is a
    fixed band, and −0.5 fits a mean. "Rethinking Importance Sampling in LLM Policy Optimization: A Cumulative Token
    Perspective", arXiv 2605.07331.

    Attributes:
        log_low, log_high: distances of the bounds from 0 at t = 1, nats, at least 0.
        log_dual: bound for A < 0, nats at t = 1; None for no dual clip.
        power: exponent of t.
        statistic: what the bounds apply to; None is the ratio that weighs.

    Raises:
        ValueError: a bound below 0, or a power that is not finite.
    """

    log_low: float
    log_high: float
    log_dual: float | None = None
    power: float = 0.0
    statistic: Ratio | None = None

    def __post_init__(self) -> None:
        checks.number("log_low", self.log_low, 0.0)
        checks.number("log_high", self.log_high, 0.0)
        checks.finite("power", self.power)
        if self.log_dual is not None:
            checks.number("log_dual", self.log_dual, 0.0)

    @property
    def bases(self) -> Bases:
        """The bounds at t = 1."""
        return Bases(-self.log_low, self.log_high, self.log_dual, self.power)

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
    """

    ratio_low: float
    ratio_high: float
    ratio_dual: float | None = None
    statistic: Ratio | None = None

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
    """No trust region: every token keeps its gradient."""

    statistic: ClassVar[None] = None
    bases: ClassVar[Bases] = Bases(-math.inf, math.inf, None, 0.0)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        return Limits(-math.inf, math.inf)
