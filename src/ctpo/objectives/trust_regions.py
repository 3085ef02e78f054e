"""Trust regions: the interval of a log statistic within which a token keeps its gradient.

A region gates on a statistic of its own choice. Left at None it is the ratio that weighs, and a clipped token
takes the value of the bound; a separate statistic only decides, and a clipped token keeps its own weight
without gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.ratios import Ratio
from ctpo.objectives.tokens import Tokens

Bound = Tensor | float


@dataclass(frozen=True)
class Limits:
    """Log-space bounds, scalars or one a token, and the detached statistic they apply to (None: the weight's
    own).
    """

    lower: Bound
    upper: Bound
    dual: Bound | None = None
    statistic: Tensor | None = None


class TrustRegion(Protocol):
    """A rule that turns tokens into log-space limits."""

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """Bounds at every token, from advantages that broadcast to the tokens and detached log weights."""
        ...


@dataclass(frozen=True)
class Bases:
    """Log-space bounds at t = 1; at t they are scaled by t^power."""

    lower: float
    upper: float
    dual: float | None
    power: float

    def at(self, tokens: Tokens, statistic: Ratio | None) -> Limits:
        """Limits at every token."""
        own = None if statistic is None else statistic.statistic(tokens).detach().to(tokens.logps.dtype)
        if self.power == 0.0:
            return Limits(self.lower, self.upper, self.dual, own)
        scale = tokens.positions().to(tokens.logps.dtype).pow(self.power)

        def scaled(base: float) -> Bound:
            return base if math.isinf(base) else scale * base

        dual = None if self.dual is None else scaled(self.dual)
        return Limits(scaled(self.lower), scaled(self.upper), dual, own)


@dataclass(frozen=True)
class LogBand:
    """[−low·t^power, high·t^power], dual bound dual·t^power, in log space (CTPO, arXiv 2605.07331).

    t is the 1-based count of generated tokens; power 0.5 follows the spread of a sum of independent steps,
    0 is a fixed band, −0.5 fits a mean.
    """

    low: float
    high: float
    dual: float | None = None
    power: float = 0.0
    statistic: Ratio | None = None

    def __post_init__(self) -> None:
        checks.number("low", self.low, 0.0)
        checks.number("high", self.high, 0.0)
        checks.finite("power", self.power)
        if self.dual is not None:
            checks.number("dual", self.dual, 0.0)

    @property
    def bases(self) -> Bases:
        """Log-space bounds at t = 1."""
        return Bases(-self.low, self.high, self.dual, self.power)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """See `TrustRegion.limits`."""
        return self.bases.at(tokens, self.statistic)


@dataclass(frozen=True)
class RatioBand:
    """[1 − low, 1 + high] on the ratio, dual bound an absolute ratio, as PPO does; no bound if low ≥ 1.

    Dual clip: arXiv 1912.09729, equation 5.
    """

    low: float
    high: float
    dual: float | None = None
    statistic: Ratio | None = None

    def __post_init__(self) -> None:
        checks.number("low", self.low, 0.0)
        checks.number("high", self.high, 0.0)
        if self.dual is not None:
            checks.number("dual", self.dual, 1.0)

    @property
    def bases(self) -> Bases:
        """Log-space bounds."""
        lower = math.log1p(-self.low) if self.low < 1 else -math.inf
        return Bases(lower, math.log1p(self.high), None if self.dual is None else math.log(self.dual), 0.0)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """See `TrustRegion.limits`."""
        return self.bases.at(tokens, self.statistic)


@dataclass(frozen=True)
class Unbounded:
    """No trust region."""

    statistic: ClassVar[None] = None
    bases: ClassVar[Bases] = Bases(-math.inf, math.inf, None, 0.0)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """See `TrustRegion.limits`."""
        return Limits(-math.inf, math.inf)
