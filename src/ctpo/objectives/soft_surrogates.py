"""Surrogates that fade a token's gradient instead of cutting it, and one that pulls to the anchor.

ρ is the weight, A the advantage, [l, u] the bounds on the log weight and d the dual bound. See `surrogates`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ctpo.objectives import checks
from ctpo.objectives.numerics import EXP_CAP
from ctpo.objectives.surrogates import Surrogate, TokenTerms, at_bound, beyond, no_token, truncate
from ctpo.objectives.tokens import Tokens
from ctpo.objectives.trust_regions import Bound, Limits

_GAMMA_RANGE: Final = (math.log(1e-8), 20.0)
"""Where `GammaWeight` clamps the log weight, in nats."""


def _by_sign(advantages: Tensor, gain: Tensor, pos: float, neg: float) -> Tensor:
    """`pos` where the mask `gain` holds and `neg` elsewhere, in the dtype of the advantages."""
    return torch.where(gain, torch.full_like(advantages, pos), torch.full_like(advantages, neg))


@dataclass(frozen=True)
class SoftGate:
    """−(4/τ) σ(τ(ρ − 1)) A, with τ = tau_pos where A > 0 and tau_neg elsewhere. The bounds play no part.

    Its slope by ρ is 4σ(1 − σ)A: that of −ρA at ρ = 1, and less on both sides. "Soft Adaptive Policy Optimization"
    (SAPO), arXiv 2511.20347.

    Attributes:
        tau_pos, tau_neg: how fast the gradient fades, above 0.

    Raises:
        ValueError: a number that is not above 0 and finite.

    Example:
        Objective(
            ratio=TokenRatio(), trust_region=Unbounded(), surrogate=SoftGate(tau_pos=1.0, tau_neg=1.05)
        )(*batch).loss
    """

    tau_pos: float
    tau_neg: float

    def __post_init__(self) -> None:
        for name in ("tau_pos", "tau_neg"):
            checks.number(name, getattr(self, name), 0.0, strict=True)
            checks.finite(name, getattr(self, name))

    def _tau(self, advantages: Tensor) -> Tensor:
        return _by_sign(advantages, advantages > 0, self.tau_pos, self.tau_neg)

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        tau = self._tau(advantages)
        gate = (tau * truncate(log_weight, ceiling).expm1()).sigmoid() * (4 / tau)
        loss = -advantages * gate
        return TokenTerms(loss, no_token(loss), no_token(loss), no_token(loss))

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        z = self._tau(advantages) * log_weight.expm1()
        return math.log(4) + logsigmoid(z) + logsigmoid(-z) + log_weight


@dataclass(frozen=True)
class GammaWeight:
    """−sg(φ) A log π_t, where φ = e^λ ρ^k e^{−λρ} is 1 at ρ = 1. The bounds play no part.

    log ρ is clamped to [ln 1e-8, 20]. φ falls on both sides of its top at ρ = k/λ, so a weight that has run away has no
    say. "VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training", arXiv
    2602.10693.

    Attributes:
        k_pos, lambda_pos: k and λ where A ≥ 0, at least 0.
        k_neg, lambda_neg: k and λ where A < 0, at least 0.

    Raises:
        ValueError: a number that is below 0 or not finite.

    Example:
        Objective(
            ratio=SequenceRatio(), trust_region=Unbounded(), surrogate=GammaWeight(2.0, 2.0, 3.0, 3.0)
        )(*batch).loss
    """

    k_pos: float
    lambda_pos: float
    k_neg: float
    lambda_neg: float

    def __post_init__(self) -> None:
        for name in ("k_pos", "lambda_pos", "k_neg", "lambda_neg"):
            checks.finite(name, getattr(self, name), 0.0)

    def _log_phi(self, log_weight: Tensor, advantages: Tensor) -> Tensor:
        gain, x = advantages >= 0, log_weight.clamp(*_GAMMA_RANGE)
        k = _by_sign(advantages, gain, self.k_pos, self.k_neg)
        scale = _by_sign(advantages, gain, self.lambda_pos, self.lambda_neg)
        return (scale + k * x - scale * x.exp()).clamp(max=EXP_CAP)

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        phi = self._log_phi(log_weight.detach(), advantages).exp()
        loss = -advantages * phi * tokens.logps
        return TokenTerms(loss, no_token(loss), no_token(loss), no_token(loss))

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        return self._log_phi(log_weight, advantages)


@dataclass(frozen=True)
class SoftClip:
    """−ρA inside; beyond u with A > 0, −β_high e^u A ρ/sg(ρ); beyond l with A < 0, −β_low e^l A ρ/sg(ρ).

    A clipped token keeps the share β of the gradient that it had at the bound. With a region on another statistic, it
    keeps the share β of its own gradient. "CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping Policy
    Optimization in Reinforcement Learning", arXiv 2509.20712.

    Attributes:
        beta_low, beta_high: the shares, at least 0.

    Raises:
        ValueError: a share that is below 0 or not finite.

    Example:
        Objective(
            ratio=TokenRatio(), trust_region=RatioBand(0.2, 0.28), surrogate=SoftClip(beta_low=0.5, beta_high=1.0)
        )(*batch).loss
    """

    beta_low: float
    beta_high: float

    def __post_init__(self) -> None:
        checks.finite("beta_low", self.beta_low, 0.0)
        checks.finite("beta_high", self.beta_high, 0.0)

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        value = log_weight.detach()
        high, low = beyond(limits, value, advantages)
        exponent = log_weight + (at_bound(limits, value, high, low) - value)
        share = torch.where(high, self.beta_high, torch.where(low, self.beta_low, torch.ones_like(value)))
        return TokenTerms(-advantages * share * truncate(exponent, ceiling).exp(), high, low, no_token(high))

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        bound = at_bound(limits, log_weight, terms.high, terms.low)
        above, below = (math.log(beta) if beta > 0 else -math.inf for beta in (self.beta_high, self.beta_low))
        share = torch.where(terms.high, above, torch.where(terms.low, below, torch.zeros_like(bound)))
        return bound + share


@dataclass(frozen=True)
class SoftDualClip:
    """−clip(ρ, e^l, e^u) A, and −e^d A log π_t beyond the dual bound d, whatever the sign of A.

    A token beyond l or u loses its gradient; one beyond d keeps that of a weight of e^d. "ASPO: Asymmetric Importance
    Sampling Policy Optimization", arXiv 2510.06062.

    Example:
        Objective(
            ratio=FlippedRatio(), trust_region=RatioBand(0.2, 0.2, ratio_dual=3.0), surrogate=SoftDualClip()
        )(*batch).loss
    """

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        value = log_weight.detach()
        high, low = limits.outside(value)
        dual = no_token(high)
        if limits.dual is not None:
            dual = ~(high | low) & ((value if limits.statistic is None else limits.statistic) > limits.dual)
        frozen = at_bound(limits, value, high, low)
        weight = truncate(torch.where(high | low, frozen, log_weight), ceiling).exp()
        if limits.dual is not None:
            soft = self._dual(limits, value).exp() * tokens.logps
            weight = torch.where(dual, soft, weight)
        return TokenTerms(-advantages * weight, high, low, dual)

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        capped = torch.where(terms.dual, self._dual(limits, log_weight), log_weight)
        return capped.masked_fill(terms.high | terms.low, -math.inf)

    @staticmethod
    def _dual(limits: Limits, value: Tensor) -> Tensor:
        """The log weight of a token beyond the dual bound, at most EXP_CAP."""
        if limits.dual is None or limits.statistic is not None:
            return value.clamp(max=EXP_CAP)
        return torch.zeros_like(value).add(limits.dual).clamp(max=EXP_CAP)


@dataclass(frozen=True)
class Pulled:
    """A surrogate's loss plus (τ/2) d_t², which pulls every token back to the anchor, whatever its advantage.

    d_t is the log ratio of the token itself. The term has the gradient τ d_t ∇log π_t, which for tokens of π_θ is τ
    times that of KL(π_θ ‖ π_old) in expectation. Weights of the call multiply it, and tokens that the loss does not
    count have none. Kimi Team, "Kimi k1.5: Scaling Reinforcement Learning with LLMs", arXiv 2501.12599.

    Attributes:
        surrogate: the loss that is added to.
        tau: τ, at least 0.

    Raises:
        ValueError: tau is below 0 or not finite.

    Example:
        Objective(
            ratio=UnitRatio(), trust_region=Unbounded(), surrogate=Pulled(StopGradientWeight(), tau=0.1)
        )(*batch).loss
    """

    pulls: ClassVar[bool] = True

    surrogate: Surrogate
    tau: float

    def __post_init__(self) -> None:
        checks.finite("tau", self.tau, 0.0)

    def terms(
        self, log_weight: Tensor, ceiling: Bound, advantages: Tensor, limits: Limits, tokens: Tokens
    ) -> TokenTerms:
        inner = self.surrogate.terms(log_weight, ceiling, advantages, limits, tokens)
        pull = tokens.weights * (self.tau / 2) * tokens.log_ratio.square()
        return TokenTerms(inner.loss + pull, inner.high, inner.low, inner.dual)

    def left(self, log_weight: Tensor, advantages: Tensor, terms: TokenTerms, limits: Limits) -> Tensor:
        return self.surrogate.left(log_weight, advantages, terms, limits)
