"""The loss for verl 0.9: `actor.policy_loss.loss_mode=ctpo`, or `ctpo/<preset>` for any other preset.

Importing this module registers the losses. verl imports it in every process, through the entry point group
`verl.plugins`. verl does not report a failure there, so this module prints success and failure to stderr.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import floats, framework, objective_for, token_losses
from ctpo.errors import UserError
from ctpo.objectives import preset_names, turns_of

STATS = "actor/ctpo/"
"""What the names of the objective's statistics begin with, among verl's metrics."""
_INSTALL = "verl>=0.9.1 (pip install --no-deps verl where torch is already there)"
core_algos = framework("verl.trainer.ppo.core_algos", _INSTALL)
_correction = framework("verl.trainer.ppo.rollout_corr_helper", _INSTALL)
_config = framework("verl.workers.config", _INSTALL)


@dataclass
class CTPOPolicyLossConfig(_config.PolicyLossConfig):  # type: ignore[misc, name-defined]
    """verl's settings `policy_loss` with a preset and its knobs.

    `actor.policy_loss._target_=ctpo.adapters.verl.CTPOPolicyLossConfig` selects it.
    """

    loss_mode: str = "ctpo"
    preset: str = "ctpo"
    """The preset that `loss_mode=ctpo` means."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """The preset's settings. The reduction is verl's `loss_agg_mode`, and penalties are verl's too."""

    def __post_init__(self) -> None:
        objective_for(self.preset, self.knobs)


def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    *,
    preset: str | None = None,
    **_: Any,
) -> tuple[Tensor, dict[str, float]]:
    """The policy loss, reduced by verl's `agg_loss` with the totals of the minibatch, and its metrics.

    The tensors are padded responses [B, T]. Further keyword arguments are ignored, since verl has added some before.
    """
    settings = config.policy_loss
    objective = objective_for(preset or settings.get("preset", "ctpo"), settings.get("knobs", {}))
    out = objective(
        *(log_prob, old_log_prob, advantages, response_mask),
        weights=rollout_is_weights,
        turn_ids=turns_of(response_mask),
    )
    guards.look(out, log_prob, old_log_prob, response_mask)
    losses = token_losses(objective, out, response_mask)
    loss = core_algos.agg_loss(losses, response_mask, loss_agg_mode, **config.global_batch_info)
    metrics = floats(out.stats, STATS)
    named = {"pg_clipfrac": "clip_fraction", "pg_clipfrac_lower": "clip_fraction_dual", "ppo_kl": "kl_k1"}
    return loss, metrics | {f"actor/{theirs}": metrics[f"{STATS}{ours}"] for theirs, ours in named.items()}


def _keep_loss_mode(original: Any) -> Any:
    """Wrap verl's `apply_bypass_mode` so that it refuses our losses.

    The bypass mode of the old trainer replaces `loss_mode`, so the run would train PPO under our name.
    """

    @functools.wraps(original)
    def apply(batch: Any, rollout_corr_config: Any = None, policy_loss_config: Any = None) -> Any:
        mode = str(policy_loss_config.get("loss_mode"))
        if mode.split("/")[0] == "ctpo":
            raise UserError(
                f"rollout_correction.bypass_mode=True under trainer.use_v1=False replaces policy_loss.loss_mode="
                f"{mode!r} by 'bypass_mode'; set trainer.use_v1=True, which keeps it, or bypass_mode=False"
            )
        return original(batch, rollout_corr_config, policy_loss_config)

    return apply


def _register() -> None:
    core_algos.register_policy_loss("ctpo")(policy_loss)
    for name in preset_names():
        core_algos.register_policy_loss(f"ctpo/{name}")(functools.partial(policy_loss, preset=name))
    if not hasattr(_correction.apply_bypass_mode, "__wrapped__"):
        setattr(_correction, "apply_bypass_mode", _keep_loss_mode(_correction.apply_bypass_mode))  # noqa: B010


try:
    _register()
except Exception as error:
    print(f"ctpo: NOT registered with verl, loss_mode=ctpo will be unknown: {error!r}", file=sys.stderr)
    raise
print(f"ctpo: registered with verl, loss_mode=ctpo or ctpo/<{'|'.join(preset_names())}>", file=sys.stderr)
