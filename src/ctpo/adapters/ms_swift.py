"""The loss for ms-swift: `swift rlhf --rlhf_type grpo --external_plugins FILE …`, where FILE imports this module.

Importing this module puts our trainer in the place of ms-swift's GRPO trainer. The settings come from the environment
variable `CTPO_LOSS` (`ctpo.adapters.shared.settings_from_environment`). ms-swift's own loss runs with advantages of 0.
What is left of it are its penalties and its records. Its `--loss_type` says what is summed and divided by what.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import (
    floats,
    framework,
    refuse,
    settings_from_environment,
    token_losses,
    without_ratio,
)
from ctpo.errors import UserError
from ctpo.objectives import anchor_logps, turns_of

_INSTALL: Final = "ms-swift>=4 (pip install ms-swift)"
_OTHERS: Final = {
    "importance_sampling_level": "token",
    "rollout_importance_sampling_mode": None,
    "off_policy_sequence_mask_delta": None,
    "top_entropy_quantile": 1.0,
    "use_liger_loss": False,
    "chord_sft_iterator": None,
}
"""Settings that act inside the policy loss of ms-swift, with the values that switch them off."""
_REDUCTIONS: Final = ("grpo", "bnpo", "dr_grpo", "dapo")


class CTPOTrainer(framework("swift.rlhf_trainers", _INSTALL).GRPOTrainer):  # type: ignore[misc]
    """ms-swift's GRPO trainer with an objective of ours."""

    _rest: Any = None
    """The micro-batch under way with advantages of 0, for ms-swift's own loss."""
    _scored: Tensor
    """Its log-probs [B, T]."""

    def _get_per_token_logps_and_entropies(
        self, model: Any, model_inputs: Any, grpo_batch: Any, *args: Any, **kwargs: Any
    ) -> Any:
        scored = super()._get_per_token_logps_and_entropies(model, model_inputs, grpo_batch, *args, **kwargs)
        if grpo_batch is self._rest:
            self._scored = scored[0]
            if grpo_batch.old_per_token_logps is not None:
                grpo_batch.old_per_token_logps = without_ratio(grpo_batch.old_per_token_logps, scored[0])
        return scored

    def _compute_loss_and_metrics(self, model: Any, model_inputs: Any, grpo_batch: Any) -> tuple[Tensor, Any]:
        settings = settings_from_environment()
        refuse(self, "args", **_OTHERS)
        if self.loss_type not in _REDUCTIONS:
            raise UserError(
                f"loss_type={self.loss_type!r} is a loss of its own; use one of {', '.join(_REDUCTIONS)}, which only "
                "say how token losses are reduced"
            )
        batch = grpo_batch
        self._rest = dataclasses.replace(batch, advantages=torch.zeros_like(batch.advantages))
        penalties, metrics = super()._compute_loss_and_metrics(model, model_inputs, self._rest)
        logps, self._rest = self._scored, None
        old = logps.detach() if batch.old_per_token_logps is None else batch.old_per_token_logps
        mask = batch.completion_mask != 0
        if self.overlong_filter:
            mask = mask & ~batch.truncated_mask.bool()[:, None]
        anchor = anchor_logps(settings.anchor, old, batch.rollout_per_token_logps)
        objective = settings.objective
        out = objective(logps, anchor, batch.advantages, mask, turn_ids=turns_of(mask))
        guards.look(out, logps, anchor, mask)
        for name, value in floats(out.stats).items():
            self._metrics[metrics["mode"]][name].append(value)
        return penalties + self._reduced(token_losses(objective, out, mask), mask, batch), metrics

    def _reduced(self, losses: Tensor, mask: Tensor, batch: Any) -> Tensor:
        """The token losses [B, T], as `loss_type` sums and divides them."""
        rows, lengths = (losses * mask).sum(-1), mask.sum(-1).clamp(min=1)
        if self.loss_type == "grpo":
            return torch.mean(rows / lengths)
        divisor: Any = batch.num_items_in_batch / self.accelerator.num_processes
        if self.loss_type == "bnpo":
            divisor = mask.sum().clamp(min=1)
        elif self.loss_type == "dr_grpo":
            divisor = len(mask) * self.max_completion_length
        total: Tensor = rows.sum() / divisor
        return total


framework("swift.trainers", _INSTALL).TrainerFactory.TRAINER_MAPPING["grpo"] = f"{__name__}.CTPOTrainer"
