"""The loss for OpenRLHF: `python -m ctpo.adapters.openrlhf …`, with the words of `openrlhf.cli.train_ppo_ray`.

OpenRLHF makes its loss from a class of its own. Here a subclass takes that class's place in every Ray worker, before
the worker's trainer is imported. The settings come from the environment variable `CTPO_LOSS`
(`ctpo.adapters.shared.settings_from_environment`). `aggregate_loss` of OpenRLHF reduces: over tokens with
`--actor.policy_loss_type ppo`, over sequences with `gspo`.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import VARIABLE, framework, settings_from_environment, subclass, token_losses
from ctpo.errors import UserError
from ctpo.objectives import anchor_logps, turns_of

_INSTALL: Final = "openrlhf (pip install openrlhf)"
_MODELS: Final = "openrlhf.models"
_USES: Final = "openrlhf.trainer.ray.ppo_actor"


class _Loss:
    """OpenRLHF's `PolicyLoss` with an objective of ours."""

    token_level_loss: bool
    enable_vllm_is_correction: bool
    dual_clip: float | None

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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The loss, the share of clipped tokens, KL(old ‖ new), and the engine's difference if it reports log-probs."""
        if self.enable_vllm_is_correction or self.dual_clip is not None:
            raise UserError(
                "algo.advantage.is_correction_enable and actor.dual_clip act inside the loss that this one replaces; "
                'leave them out, and for the difference to the engine set "anchor": "rollout" in ' + VARIABLE
            )
        settings = settings_from_environment()
        objective = settings.objective
        mask = torch.ones_like(log_probs, dtype=torch.bool) if action_mask is None else action_mask != 0
        anchor = anchor_logps(settings.anchor, old_log_probs, rollout_log_probs)
        out = objective(log_probs, anchor, advantages, mask, turn_ids=turns_of(mask))
        guards.look(out, log_probs, anchor, mask)
        loss = framework(_MODELS, _INSTALL).aggregate_loss(
            token_losses(objective, out, mask),
            mask.to(log_probs.dtype),
            token_level_loss=self.token_level_loss,
            dp_size=dp_size,
            batch_num_tokens=batch_num_tokens,
            global_batch_size=global_batch_size,
        )
        mismatch = None
        if rollout_log_probs is not None:
            mismatch = ((rollout_log_probs - old_log_probs) * mask).sum() / mask.sum().clamp(min=1)
        return loss, out.stats["clip_fraction"], out.stats["kl_k1"], mismatch


def install() -> None:
    """Put our loss in the place of OpenRLHF's in this process. A second call does nothing."""
    settings_from_environment()  # a mistake in them shows here, and not after the rollouts
    models = framework(_MODELS, _INSTALL)
    if issubclass(models.PolicyLoss, _Loss):
        return
    setattr(models, "PolicyLoss", subclass("PolicyLoss", _Loss, models.PolicyLoss, __name__))  # noqa: B010
    if _USES in sys.modules:
        setattr(sys.modules[_USES], "PolicyLoss", models.PolicyLoss)  # noqa: B010


def environment() -> dict[str, Any]:
    """The runtime environment of Ray that calls `install` in every worker, with the variables that OpenRLHF sets."""
    theirs = {
        "TOKENIZERS_PARALLELISM": "true",
        "NCCL_DEBUG": "WARN",
        "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
    }
    variables = {name: os.environ.get(name, value) for name, value in theirs.items()}
    if VARIABLE in os.environ:
        variables[VARIABLE] = os.environ[VARIABLE]
    return {"env_vars": variables, "worker_process_setup_hook": f"{__name__}.install"}


def main() -> None:
    """Start Ray so that its workers use our loss, and run OpenRLHF's command."""
    settings_from_environment()
    framework("ray", _INSTALL).init(runtime_env=environment())
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
