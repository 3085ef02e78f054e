"""The loss for SkyRL 0.4: call `register()` before `ray.init`, then set `policy_loss_type=ctpo` or `ctpo/<preset>`.

The full name of the setting is `trainer.algorithm.policy_loss_type`. SkyRL scales the advantages so that the sum over
the mask is the mean that its settings ask for. It adds penalties on KL and entropy itself.
"""

from __future__ import annotations

from dataclasses import field, make_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import Settings, floats, framework, objective_for, token_losses
from ctpo.errors import UserError
from ctpo.objectives import anchor_logps, preset_names, turns_of

_INSTALL = "skyrl>=0.4 (Python 3.12 or later)"
_LOSSES = "skyrl.backends.skyrl_train.utils.ppo_utils"


def algorithm_config() -> type:
    """SkyRL's `AlgorithmConfig` with a field `ctpo` of `Settings`, for `make_config(algorithm_cls=…)`."""
    base = framework("skyrl.train.config", _INSTALL).AlgorithmConfig
    return make_dataclass(
        "CTPOAlgorithmConfig", [("ctpo", Settings, field(default_factory=Settings))], bases=(base,)
    )


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    config: Any,
    loss_mask: Tensor | None = None,
    rollout_logprobs: Tensor | None = None,
    *,
    preset: str | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The sum of the token losses over the mask, and statistics.

    If the anchor is "old", SkyRL's own off-policy correction is applied first.
    """
    skyrl = framework(_LOSSES, _INSTALL)
    settings = getattr(config, "ctpo", Settings())
    mask = torch.ones_like(log_probs, dtype=torch.bool) if loss_mask is None else loss_mask
    objective = objective_for(preset or settings.preset, settings.knobs)
    if not objective.idle_without_advantage:
        raise UserError(
            f"preset {preset or settings.preset!r} pulls tokens to the anchor whatever their advantage, and SkyRL "
            "divides by the tokens of a batch only in the advantages; use a preset without a pull"
        )
    anchor = anchor_logps(settings.anchor, old_log_probs, rollout_logprobs)
    out = objective(log_probs, anchor, advantages, mask, turn_ids=turns_of(mask))
    guards.look(out, log_probs, anchor, mask)
    losses, corrected, metrics = token_losses(objective, out, mask), mask, {}
    if settings.anchor == "old":
        losses, corrected, metrics = skyrl.apply_off_policy_correction(
            losses, old_log_probs, rollout_logprobs, mask, config.off_policy_correction
        )
    return skyrl.reduce_loss(losses, corrected), {**floats(out.stats), **metrics}


def register() -> None:
    """Register the losses with SkyRL. A second call does nothing."""
    registry = framework(_LOSSES, _INSTALL).PolicyLossRegistry
    for name, chosen in (("ctpo", None), *((f"ctpo/{name}", name) for name in preset_names())):
        if name not in registry.list_available():
            registry.register(name, partial(policy_loss, preset=chosen))
