"""ROLL: an actor's worker, whose loss has a policy gradient and a penalty on KL, and how token losses are reduced."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DataProto = Any


def agg_loss(
    loss_mat: Tensor,
    loss_mask: Tensor,
    loss_agg_mode: str,
    batch_num_tokens: int = None,  # type: ignore[assignment]  # noqa: RUF013
    global_valid_samples: int = None,  # type: ignore[assignment]  # noqa: RUF013
    weights: Tensor | None = None,
):  # type: ignore[no-untyped-def]
    factors = torch.ones(len(loss_mat)) if weights is None else weights
    if loss_agg_mode == "token-mean":
        return (loss_mat * factors[:, None]).sum() / (batch_num_tokens or loss_mask.sum())
    rows = (loss_mat * loss_mask).sum(-1)
    if loss_agg_mode == "seq-mean-token-mean":
        rows = rows / loss_mask.sum(-1).clamp(min=1)
    return (rows * factors).sum() / (global_valid_samples or len(loss_mat))


class ActorWorker:
    """Of the pipeline `rlvr`. `strategy` scores, and `pipeline_config` holds the settings."""

    strategy: Any
    pipeline_config: Any

    def get_old_log_probs_with_cache(self, data: DataProto, log_probs: Tensor) -> Tensor:
        old: Tensor = data.batch["old_log_probs"]
        return old

    def loss_func(self, data: DataProto, output_tensor: Tensor):  # type: ignore[no-untyped-def]
        mask = data.batch["response_mask"][:, 1:].long()
        totals = data.meta_info["batch_num_tokens"]["response_mask"]
        samples = data.meta_info["global_valid_samples"]["response_mask"]
        logps = self.strategy.op_compute_log_probs(
            logits=output_tensor,
            input_ids=data.batch["input_ids"],
            attention_mask=data.batch["response_mask"],
        )
        old = self.get_old_log_probs_with_cache(data, logps)
        given = (self.pipeline_config.loss_agg_mode, totals, samples)
        policy = agg_loss(-(logps - old).exp() * data.batch["advantages"] * mask, mask, *given)
        apart = data.batch["ref_log_probs"] - logps
        kl = agg_loss((apart.exp() - apart - 1) * mask, mask, *given)
        total = policy + self.pipeline_config.kl_loss_coef * kl
        return total, {"actor/pg_loss@sum": policy.item(), "actor/kl_loss@sum": kl.item()}

    def compute_sample_weights(self, data: DataProto, response_mask: Tensor):  # type: ignore[no-untyped-def]
        return torch.ones(len(response_mask))
