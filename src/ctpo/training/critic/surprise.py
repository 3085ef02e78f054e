"""What a critic reads without any forward pass: how likely the policy itself held the tokens so far."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = -30.0
"""Nats. A token that is less likely than this counts as that likely, also one with no finite log-prob."""
COUNT = 5
"""How many features a token has."""


def surprise(logps: Tensor, mask: Tensor) -> Tensor:
    """[B, T, 5] features of the state before each sampled token, in the dtype of the log-probs, and 0 elsewhere.

    With ℓ the log-probs of the n tokens that the model sampled before, they are 1, n, Σ ℓ, min ℓ and e^{min ℓ}. Over no
    tokens, sum and minimum are 0. A mistake is often a token that the policy held for unlikely, so the return falls
    with the minimum. The features depend on nothing but the tokens before, so a value made of them is a baseline like
    any other.

    Args:
        logps: [B, T] of the sampled tokens under the policy that sampled them, nats.
        mask: [B, T] boolean, true on the tokens that the model sampled.
    """
    usable = torch.where(logps.isfinite(), logps, _LEAST).clamp(_LEAST, 0.0)
    usable = torch.where(mask, usable, torch.zeros_like(usable))
    total = usable.cumsum(dim=1) - usable
    least = torch.cummin(usable, dim=1).values.roll(1, dims=1)
    least[:, :1] = 0.0
    before = (mask.cumsum(dim=1) - mask.long()).to(usable)
    features = torch.stack([torch.ones_like(total), before, total, least, least.exp()], dim=-1)
    return features * mask.unsqueeze(-1)
