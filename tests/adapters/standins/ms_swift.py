"""ms-swift: a micro-batch, a trainer with a policy gradient and a penalty on KL, and the table of trainers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor


@dataclass
class GRPOBatch:
    completion_mask: Tensor
    truncated_mask: Tensor
    seq_lengths: Tensor
    old_per_token_logps: Tensor | None = None
    ref_per_token_logps: Tensor | None = None
    rollout_per_token_logps: Tensor | None = None
    teacher_per_token_logps: Tensor | None = None
    advantages: Tensor | None = None
    num_items_in_batch: Tensor | None = None
    logits_to_keep: int | None = None


class GRPOTrainer:
    importance_sampling_level = "token"
    rollout_importance_sampling_mode = off_policy_sequence_mask_delta = chord_sft_iterator = None
    top_entropy_quantile = 1.0
    use_liger_loss = overlong_filter = False
    max_completion_length = 32

    def __init__(self, loss_type: str, beta: float = 0.0) -> None:
        self.loss_type, self.beta = loss_type, beta
        self.accelerator = SimpleNamespace(num_processes=1)
        self._metrics: dict[str, Any] = {"train": defaultdict(list)}

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        model_inputs: dict[str, Any],
        grpo_batch: GRPOBatch,
        compute_entropy=False,  # type: ignore[no-untyped-def]
        origin_data=None,
    ) -> tuple[Tensor, Tensor | None]:
        return model(**model_inputs), None

    def _compute_loss_and_metrics(self, model: Any, model_inputs: dict[str, Any], grpo_batch: GRPOBatch):  # type: ignore[no-untyped-def]
        logps, _ = self._get_per_token_logps_and_entropies(model, model_inputs, grpo_batch)
        mask = grpo_batch.completion_mask
        losses = -(logps - grpo_batch.old_per_token_logps).exp() * grpo_batch.advantages
        if self.beta:
            apart = grpo_batch.ref_per_token_logps - logps  # type: ignore[operator]
            losses = losses + self.beta * (apart.exp() - apart - 1)
        return (losses * mask).sum() / mask.sum(), {"mode": "train"}


class TrainerFactory:
    TRAINER_MAPPING = {"grpo": "swift.rlhf_trainers.GRPOTrainer"}  # noqa: RUF012

    @staticmethod
    def get_cls(args, mapping: dict[str, str]):  # type: ignore[no-untyped-def]
        raise NotImplementedError  # only its signature is used
