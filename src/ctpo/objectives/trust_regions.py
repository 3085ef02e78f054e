"""Trust regions: the interval of a log statistic within which a token keeps its gradient.

A region gates on a statistic of its own choice. Left at None it is the ratio that weighs, and a clipped token
takes the value of the bound; a separate statistic only decides, and a clipped token keeps its own weight
without gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

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


def _own_statistic(statistic: Ratio | None, tokens: Tokens) -> Tensor | None:
    return None if statistic is None else statistic.statistic(tokens).detach().to(tokens.logps.dtype)


@dataclass(frozen=True)
class LogBand:
    """[−low·t^power, high·t^power], dual bound dual·t^power, in log space (CTPO, arXiv 2605.07331).

    t is the 1-based count of generated tokens; power 0.5 follows the spread of a sum of independent
    increments, 0 gives a fixed band, −0.5 fits a mean.
    """

    low: float
    high: float
    dual: float | None = None
    power: float = 0.0
    statistic: Ratio | None = None

    def __post_init__(self) -> None:
        checks.finite_number("low", self.low, 0.0)
        checks.finite_number("high", self.high, 0.0)
        checks.finite_number("power", self.power, -math.inf, strict=True)
        if self.dual is not None:
            checks.finite_number("dual", self.dual, 0.0)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """See `TrustRegion.limits`."""
        scale: Bound = 1.0
        if self.power != 0.0:
            scale = tokens.positions().clamp(min=1).to(tokens.logps.dtype).pow(self.power)
        dual = None if self.dual is None else scale * self.dual
        return Limits(scale * -self.low, scale * self.high, dual, _own_statistic(self.statistic, tokens))


@dataclass(frozen=True)
class RatioBand:
    """[1 − low, 1 + high] on the ratio, dual bound an absolute ratio (PPO's convention; dual clip: arXiv
    1912.09729).
    """

    low: float
    high: float
    dual: float | None = None
    statistic: Ratio | None = None

    def __post_init__(self) -> None:
        checks.finite_number("low", self.low, 0.0)
        checks.finite_number("high", self.high, 0.0)
        if self.dual is not None:
            checks.finite_number("dual", self.dual, 1.0)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """See `TrustRegion.limits`; low ≥ 1 means no lower bound."""
        lower = math.log1p(-self.low) if self.low < 1 else -math.inf
        dual = None if self.dual is None else math.log(self.dual)
        return Limits(lower, math.log1p(self.high), dual, _own_statistic(self.statistic, tokens))


@dataclass(frozen=True)
class Unbounded:
    """No trust region."""

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """See `TrustRegion.limits`."""
        return Limits(-math.inf, math.inf)
