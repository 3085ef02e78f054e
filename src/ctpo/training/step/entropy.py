"""TRL's entropy bonus: −coef · H, where H is the mean entropy of the tokens that learn, with a fixed or adaptive coef.

The adaptive coefficient is that of "Skywork Open Reasoner 1 Technical Report", arXiv 2505.22312: it rises by
`entropy_coef_delta` after an update whose mean entropy is at most `entropy_target`, falls after others, and acts only
where the entropy of the update before was at most the target. The trainer's attributes are TRL's, so that TRL saves and
restores them with its checkpoints.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ctpo.training.config.config import CTPOConfig


class EntropyView(Protocol):
    """What the bonus may know of the trainer. The names are TRL's."""

    args: CTPOConfig
    accelerator: Any
    model: Any
    current_gradient_accumulation_steps: int
    use_adaptive_entropy: bool
    entropy_coef: float
    _last_world_entropy: float
    _entropy_window_stats: Tensor | None


def entropy_penalty_of(trainer: EntropyView, entropies: Tensor, mask: Tensor) -> Tensor:
    """A micro-batch's share of −coef · H, to add to its loss. It moves the adaptive coefficient after the last share.

    H is the mean over the micro-batch's tokens in this process, as in TRL; micro-batches and processes are averaged.

    Args:
        trainer: holds the coefficient.
        entropies: [B, T] of the model's distribution at each token, nats, with gradient.
        mask: [B, T] true on tokens that the bonus acts on.
    """
    training = bool(trainer.model.training)
    total, count = torch.where(mask, entropies, 0.0).sum(), mask.sum()
    shares = trainer.current_gradient_accumulation_steps if training else 1
    acts = not trainer.use_adaptive_entropy or trainer._last_world_entropy <= trainer.args.entropy_target
    penalty = -(trainer.entropy_coef if acts else 0.0) * total / count.clamp(min=1) / shares
    if trainer.use_adaptive_entropy and training:
        _adapt(trainer, torch.stack([total.detach(), count.to(total.dtype)]))
    return penalty


def _adapt(trainer: EntropyView, sums: Tensor) -> None:
    """Count a micro-batch's entropy, and move the coefficient if it was the last of its update."""
    before, args = trainer._entropy_window_stats, trainer.args
    trainer._entropy_window_stats = sums if before is None else before + sums
    if not trainer.accelerator.sync_gradients:
        return
    total, count = trainer.accelerator.reduce(trainer._entropy_window_stats, reduction="sum").tolist()
    trainer._entropy_window_stats = None
    trainer._last_world_entropy = total / max(count, 1.0)
    if trainer._last_world_entropy <= args.entropy_target:
        trainer.entropy_coef = min(trainer.entropy_coef + args.entropy_coef_delta, args.entropy_coef_max)
    else:
        trainer.entropy_coef = max(trainer.entropy_coef - args.entropy_coef_delta, args.entropy_coef_min)
