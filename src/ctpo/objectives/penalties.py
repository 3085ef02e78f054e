"""Penalties to add to a policy loss: divergence from a reference policy, and entropy.

Both return one value per token. `Objective.reduce` reduces them as it reduces the loss:
`loss + beta * objective.reduce(kl_penalty(logps, ref_logps), response_mask, num_tokens=...)`.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.numerics import SATURATION, compute_dtype

KL_ESTIMATORS: Final = ("k1", "k2", "k3")


def kl_penalty(
    logps: Tensor, ref_logps: Tensor, estimator: str = "k3", old_logps: Tensor | None = None
) -> Tensor:
    """An estimate of KL(π_θ ‖ π_ref) at each sampled token: k1 = −δ, k2 = δ²/2 or k3 = e^δ − 1 − δ.

    δ = log π_ref − log π_θ, clamped to ±20, beyond which it has no gradient (k3 would overflow).

    The values of k1 and k3 are unbiased for tokens of π_θ. Their gradients differ: in expectation k1 has none, k2 has
    the gradient of KL(π_θ ‖ π_ref), and k3 that of KL(π_ref ‖ π_θ). With `old_logps` the estimate is multiplied by
    π_θ/π_old, which corrects for tokens sampled from π_old; k1 and k3 then have the gradient of KL(π_θ ‖ π_ref).

    Args:
        logps: log π_θ, nats, any shape, with gradient.
        ref_logps: log π_ref, nats, the same shape.
        estimator: "k1", "k2" or "k3".
        old_logps: log π_old of the policy that sampled, nats, the same shape; None leaves the ratio out.

    Returns:
        One value per token, not reduced, in float32 or float64; at least 0 for k2 and k3.

    Raises:
        ValueError: unknown estimator.

    Source: J. Schulman, "Approximating KL Divergence" (2020). k3: "DeepSeekMath: Pushing the Limits of Mathematical
    Reasoning in Open Language Models", arXiv 2402.03300, equation 4.

    Example:
        loss = out.loss + 0.04 * objective.reduce(kl_penalty(logps, ref_logps), response_mask)
    """
    checks.choice("kl_estimator", estimator, KL_ESTIMATORS)
    dtype = compute_dtype(logps, ref_logps)
    delta = (ref_logps.detach().to(dtype) - logps.to(dtype)).clamp(-SATURATION, SATURATION)
    if estimator == "k1":
        values = -delta
    elif estimator == "k2":
        values = delta.square() / 2
    else:
        values = delta.expm1() - delta
    if old_logps is None:
        return values
    log_ratio = (logps.to(dtype) - old_logps.detach().to(dtype)).clamp(-SATURATION, SATURATION)
    return values * log_ratio.exp()


def entropy_penalty(entropies: Tensor) -> Tensor:
    """−H_t. Added to a loss with a positive factor, it rewards entropy.

    Args:
        entropies: exact entropies of the next-token distributions, nats, with gradient.

    Returns:
        One value per token, not reduced, at most 0.

    Example:
        loss = out.loss + 0.01 * objective.reduce(entropy_penalty(entropies), response_mask)
    """
    return -entropies
