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
from ctpo.objectives.old_names import old_fields
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


@old_fields(low="log_low", high="log_high", dual="log_dual")
@dataclass(frozen=True)
class LogBand:
    """[−log_low·t^power, log_high·t^power], dual bound log_dual·t^power, in log space (CTPO,
    arXiv 2605.07331).

    t is the 1-based count of generated tokens; power 0.5 follows the spread of a sum of independent steps,
    0 is a fixed band, −0.5 fits a mean.
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
        """Log-space bounds at t = 1."""
        return Bases(-self.log_low, self.log_high, self.log_dual, self.power)

    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        """See `TrustRegion.limits`."""
        return self.bases.at(tokens, self.statistic)


@old_fields(low="ratio_low", high="ratio_high", dual="ratio_dual")
@dataclass(frozen=True)
class RatioBand:
    """[1 − ratio_low, 1 + ratio_high] on the ratio, dual bound ratio_dual, as PPO does; no bound if ratio_low ≥ 1.

    Dual clip: arXiv 1912.09729, equation 5.
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
        """Log-space bounds."""
        lower = math.log1p(-self.ratio_low) if self.ratio_low < 1 else -math.inf
        return Bases(
            lower,
            math.log1p(self.ratio_high),
            None if self.ratio_dual is None else math.log(self.ratio_dual),
            0.0,
        )

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
