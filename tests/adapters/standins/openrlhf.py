"""OpenRLHF: the class of its policy loss, and how token losses are summed and divided."""

from __future__ import annotations

import torch
from torch import Tensor


def aggregate_loss(
    loss: Tensor,
    loss_mask: Tensor,
    token_level_loss: bool = True,
    dp_size: int = 1,
    batch_num_tokens: float | None = None,
    global_batch_size: float | None = None,
) -> Tensor:
    summed = (loss * loss_mask).sum(-1)
    lengths = loss_mask.sum(-1)
    if token_level_loss:
        return summed.sum() / (batch_num_tokens or lengths.sum()) * dp_size
    return (summed / lengths.clamp(min=1)).sum() / (global_batch_size or (lengths > 0).sum()) * dp_size


class PolicyLoss(torch.nn.Module):
    def __init__(
        self,
        clip_eps_low: float = 0.2,
        clip_eps_high: float = 0.2,
        dual_clip: float = None,  # type: ignore[assignment]  # noqa: RUF013
        token_level_loss: bool = True,
        policy_loss_type: str = "ppo",
        enable_vllm_is_correction: bool = False,
        vllm_is_truncated_threshold: list = None,  # type: ignore[type-arg, assignment]  # noqa: RUF013
        vllm_is_correction_type: str = "tis",
    ) -> None:
        super().__init__()
        self.dual_clip = dual_clip
        self.token_level_loss = token_level_loss and policy_loss_type != "gspo"
        self.enable_vllm_is_correction = enable_vllm_is_correction

    def forward(
        self,
        log_probs: Tensor,
        old_log_probs: Tensor,
        advantages: Tensor,
        action_mask: Tensor | None = None,
        rollout_log_probs: Tensor | None = None,
        dp_size: int = 1,
        batch_num_tokens: float | None = None,
        global_batch_size: float | None = None,
    ) -> Tensor:
        raise NotImplementedError  # the adapter's subclass has its own
