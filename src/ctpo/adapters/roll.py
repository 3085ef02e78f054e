"""The loss for ROLL: `actor_train: {worker_cls: ctpo.adapters.roll.RLVRWorker}`, or `AgenticWorker`.

The settings come from the environment variable `CTPO_LOSS` (`ctpo.adapters.shared.settings_from_environment`), which
`actor_train.system_envs` sets. ROLL's own loss runs with advantages of 0. What is left of it are its penalties on KL
and entropy, and its records. `agg_loss` of ROLL reduces, as `loss_agg_mode` says.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import (
    VARIABLE,
    floats,
    framework,
    refuse,
    settings_from_environment,
    subclass,
    token_losses,
    without_ratio,
)
from ctpo.errors import UserError
from ctpo.objectives import anchor_logps, turns_of

_INSTALL: Final = "ROLL from its repository"
_PIPELINES: Final = {
    "RLVRWorker": "roll.pipeline.rlvr.actor_worker",
    "AgenticWorker": "roll.pipeline.agentic.agentic_actor_worker",
}
_OTHERS: Final = {"dual_clip_loss": False, "importance_sampling": "token", "ratio_type": "token"}
"""Settings that act inside the policy loss of ROLL, with the values that switch them off."""


class _Worker:
    """A worker of ROLL that trains with an objective of ours."""

    pipeline_config: Any
    _scored: tuple[Tensor, Tensor]
    """Log-probs of the policy and of the policy before this batch's updates, of the call that is under way."""

    def get_old_log_probs_with_cache(self, data: Any, log_probs: Tensor) -> Tensor:
        """The anchor's log-probs for ROLL's own loss, after both were kept for ours."""
        old: Tensor = super().get_old_log_probs_with_cache(data, log_probs)  # type: ignore[misc]
        self._scored = (log_probs, old)
        return without_ratio(old, log_probs)

    def loss_func(self, data: Any, output_tensor: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a micro-batch with ROLL's penalties, and its records with ours."""
        self._check()
        advantages = data.batch["advantages"]
        data.batch["advantages"] = torch.zeros_like(advantages)
        try:
            penalties, metrics = super().loss_func(data, output_tensor)  # type: ignore[misc]
        finally:
            data.batch["advantages"] = advantages
        loss, stats = self._loss(data, advantages)
        total = penalties + loss
        known = {"actor/pg_loss": loss, "actor/weighted_pg_loss": loss, "actor/total_loss": total}
        for name in metrics:
            if name.split("@")[0] in known:
                metrics[name] = known[name.split("@")[0]].item()
        return total, {**metrics, **stats}

    def _loss(self, data: Any, advantages: Tensor) -> tuple[Tensor, dict[str, float]]:
        settings, (logps, old) = settings_from_environment(), self._scored
        rollout = data.batch.get("infer_logprobs", None)
        if rollout is not None and len(rollout) == 0:
            rollout = None
        sampled = data.batch["response_mask"][:, 1:]
        final = data.batch.get("final_response_mask", None)
        mask = (sampled if final is None else final) != 0
        objective, anchor = settings.objective, anchor_logps(settings.anchor, old, rollout)
        out = objective(logps, anchor, advantages, mask, turn_ids=turns_of(mask))
        guards.look(out, logps, anchor, mask)
        weights = None
        if hasattr(self, "compute_sample_weights"):
            weights = self.compute_sample_weights(data, sampled.long())
        counted = "response_mask" if final is None else "final_response_mask"
        totals = (data.meta_info[name] for name in ("batch_num_tokens", "global_valid_samples"))
        tokens, samples = (each.get(counted, each["response_mask"]) for each in totals)
        loss = framework("roll.utils.functionals", _INSTALL).agg_loss(
            loss_mat=token_losses(objective, out, mask) * mask,
            loss_mask=mask.long(),
            loss_agg_mode=self.pipeline_config.loss_agg_mode,
            batch_num_tokens=tokens,
            global_valid_samples=samples,
            weights=weights,
        )
        return loss * getattr(self.pipeline_config, "rl_loss_coef", 1.0), floats(out.stats, "actor/ctpo/")

    def _check(self) -> None:
        refuse(self.pipeline_config, "pipeline_config", **_OTHERS)
        correction = self.pipeline_config.train_infer_correction
        if correction.is_weight.enabled or any(each.enabled for each in correction.filters):
            raise UserError(
                "train_infer_correction acts inside the loss that this one replaces; switch its weight and its filters "
                f'off, and for the difference to the engine set "anchor": "rollout" in {VARIABLE}'
            )


def __getattr__(name: str) -> type:
    """The workers. Each imports its pipeline of ROLL when it is asked for."""
    if name not in _PIPELINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    theirs = framework(_PIPELINES[name], _INSTALL).ActorWorker
    made: type = globals().setdefault(name, subclass(name, _Worker, theirs, __name__))
    return made
