"""SkyRL 0.4: `register()` before `ray.init`, then `trainer.algorithm.policy_loss_type=ctpo` or `ctpo/<preset>`.

SkyRL scales the advantages so that the masked sum is the mean it was asked for, and adds KL and entropy itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import floats, framework, objective_for, token_losses
from ctpo.objectives import anchor_logps, preset_names

_INSTALL = "skyrl>=0.4 (Python 3.12 or later)"
_LOSSES = "skyrl.backends.skyrl_train.utils.ppo_utils"


@dataclass(frozen=True)
class Settings:
    """`trainer.algorithm.ctpo`."""

    preset: str = "ctpo"
    anchor: str = "old"
    """"old" (recomputed) or "rollout" (the engine's, for fully asynchronous training)."""
    knobs: dict[str, Any] = field(default_factory=dict)


def algorithm_config() -> type:
    """SkyRL's `AlgorithmConfig` with the field `ctpo`; pass it to `make_config(algorithm_cls=…)`."""
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
    """SkyRL's policy loss: the masked sum, after SkyRL's own off-policy correction where the anchor is "old"."""
    skyrl = framework(_LOSSES, _INSTALL)
    settings = getattr(config, "ctpo", Settings())
    mask = torch.ones_like(log_probs, dtype=torch.bool) if loss_mask is None else loss_mask
    objective = objective_for(preset or settings.preset, settings.knobs)
    anchor = anchor_logps(settings.anchor, old_log_probs, rollout_logprobs)
    out = objective(log_probs, anchor, advantages, mask)
    guards.look(out, log_probs, anchor, mask)
    losses, corrected, metrics = token_losses(objective, out, mask), mask, {}
    if settings.anchor == "old":
        losses, corrected, metrics = skyrl.apply_off_policy_correction(
            losses, old_log_probs, rollout_logprobs, mask, config.off_policy_correction
        )
    return skyrl.reduce_loss(losses, corrected), {**floats(out.stats), **metrics}


def register() -> None:
    """Make the losses known to SkyRL; a second call does nothing (SkyRL refuses a name it has)."""
    registry = framework(_LOSSES, _INSTALL).PolicyLossRegistry
    for name, chosen in (("ctpo", None), *((f"ctpo/{name}", name) for name in preset_names())):
        if name not in registry.list_available():
            registry.register(name, partial(policy_loss, preset=chosen))
