"""What a critic is fitted by."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(
    values: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    old_values: Tensor | None = None,
    clip: float | None = None,
) -> Tensor:
    """The sum over tokens of ½ max((V − G)², (clip(V, V_old ± ε) − G)²), a scalar, differentiable in V.

    Without ε, or without old values, it is the sum of ½ (V − G)².

    Args:
        values: V [B, T].
        targets: G [B, T], what the values should be.
        mask: [B, T] boolean, true on the tokens that count.
        old_values: V_old [B, T], the values before the critic learned from these rows.
        clip: ε, how far a value may move from V_old before its gradient towards G ends.

    Source: "Proximal Policy Optimization" as implemented by OpenAI's baselines, TRL's PPOTrainer and verl's critic.
    """
    error = (values - targets).square()
    if clip is not None and old_values is not None:
        near = torch.clamp(values, old_values - clip, old_values + clip)
        error = torch.maximum(error, (near - targets).square())
    return 0.5 * torch.where(mask, error, torch.zeros_like(error)).sum()
