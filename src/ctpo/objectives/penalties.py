"""Penalties added to a policy loss: divergence from a reference policy, entropy.

Both return one value per token. `Objective.reduce` reduces them as it reduces the loss:
`loss + beta * objective.reduce(kl_penalty(logps, ref_logps), response_mask, num_tokens=...)`.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.numerics import SATURATION, compute_dtype

KL_ESTIMATORS: Final = ("k1", "k2", "k3")


def kl_penalty(logps: Tensor, ref_logps: Tensor, estimator: str = "k3") -> Tensor:
    """Estimate of KL(π_θ ‖ π_ref) at each sampled token, with δ = log π_ref − log π_θ.

    k1 = −δ, k2 = δ²/2, k3 = e^δ − 1 − δ. As values, k1 and k3 are unbiased under π_θ. As losses
    differentiated directly, k2 has the gradient of the reverse KL in expectation, k1 has none, and k3 has
    that of the forward KL. δ is clamped to ±20 (k3 would overflow), beyond which it has no gradient.

    Args:
        logps: log π_θ, nats, any shape, with gradient.
        ref_logps: log π_ref, nats, the same shape.
        estimator: k1, k2 or k3.

    Returns:
        Non-reduced penalty, at least 0 for k2 and k3; to be added to a loss.

    Raises:
        ValueError: unknown estimator.

    Source: J. Schulman, "Approximating KL divergence" (2020); GRPO, arXiv 2402.03300, equation 4 (k3).
    """
    checks.choice("kl_estimator", estimator, KL_ESTIMATORS)
    dtype = compute_dtype(logps, ref_logps)
    delta = (ref_logps.detach().to(dtype) - logps.to(dtype)).clamp(-SATURATION, SATURATION)
    if estimator == "k1":
        return -delta
    if estimator == "k2":
        return delta.square() / 2
    return delta.expm1() - delta


def entropy_penalty(entropies: Tensor) -> Tensor:
    """−H_t: adding it to a loss with a positive factor rewards entropy.

    Args:
        entropies: exact entropies of the next-token distributions, nats, with gradient.

    Returns:
        Non-reduced penalty, at most 0.
    """
    return -entropies
