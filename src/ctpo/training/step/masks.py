"""TRL's two masks on the policy loss: the off-policy sequence mask, and the tokens of highest entropy.

Both leave tokens out of the policy loss and keep them in its denominators and in penalties, as TRL does. So they act as
factors of the advantages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.ratios import SequenceMeanRatio
from ctpo.objectives.tokens import sanitise
from ctpo.training.scoring.microbatch import MicroBatch
from ctpo.training.view import TrainerView


def masked_advantages(
    trainer: TrainerView, batch: MicroBatch, logps: Tensor, anchor_logps: Tensor, entropy_mask: Tensor | None
) -> Tensor:
    """[B] or [B, T] the advantages, 0 where one of the masks leaves a token out.

    Args:
        trainer: whose settings say which masks there are.
        batch: B responses of T tokens.
        logps, anchor_logps: [B, T] under the model in training, and of the anchor, nats.
        entropy_mask: [B, T] true on the tokens that may learn; None for all.
    """
    advantages, threshold = batch.advantages, trainer.args.off_policy_mask_threshold
    if threshold is None and entropy_mask is None:
        return advantages
    advantages = (advantages[:, None] if advantages.dim() == 1 else advantages).expand_as(logps)
    if threshold is not None:
        sampler = anchor_logps if batch.rollout_logps is None else batch.rollout_logps
        advantages = advantages * off_policy_mask(logps, sampler, advantages, batch.response_mask, threshold)
    return advantages if entropy_mask is None else advantages * entropy_mask


@torch.no_grad()
def off_policy_mask(
    logps: Tensor, sampler_logps: Tensor, advantages: Tensor, mask: Tensor, threshold: float
) -> Tensor:
    """[B, 1] or [B, T] true where a token stays: A ≥ 0, or mean_t(log π_sampler − log π_θ) ≤ threshold.

    The mean is over the sampled tokens of the response. A token with unusable log-probs has a difference of 0 there.

    Args:
        logps, sampler_logps: [B, T] log-probs of the model in training and of the policy that sampled, nats.
        advantages: [B, 1] or [B, T].
        mask: [B, T] true on tokens that the model sampled.
        threshold: in nats.

    Source: "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", arXiv 2512.02556, equation 9; as TRL's
    `off_policy_mask_threshold`.
    """
    drift = -SequenceMeanRatio().statistic(sanitise(logps, sampler_logps, mask, Padded()))
    return (advantages >= 0) | (drift <= threshold)
