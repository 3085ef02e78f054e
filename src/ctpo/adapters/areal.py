"""The loss for AReaL: call `install()` before `PPOTrainer(…)`.

The actor's engine then calls our loss in the place of AReaL's. Single-controller workers find the engine by its import
path. The settings come from the environment variable `CTPO_LOSS` (`ctpo.adapters.shared.settings_from_environment`),
which `actor.scheduling_spec` sets for workers. AReaL divides by the tokens of the minibatch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import floats, framework, refuse, settings_from_environment, subclass
from ctpo.errors import UserError
from ctpo.objectives import anchor_logps, turns_of

_INSTALL: Final = "AReaL from its repository"
_ENGINES: Final = {
    "FSDPPPOActor": "areal.engine.fsdp_engine",
    "MegatronPPOActor": "areal.engine.megatron_engine",
}
_OTHERS: Final = {
    "c_clip": None,
    "rejection_sampling": None,
    "m2_threshold": None,
    "importance_sampling_level": "token",
    "use_sapo_loss": False,
    "use_cispo_loss": False,
}
"""Settings that act inside the policy loss of AReaL, with the values that switch them off."""


class _Engine:
    """An actor's engine of AReaL that trains with an objective of ours."""

    def train_batch(
        self, input_: Any, loss_fn: Callable[..., Tensor], loss_weight_fn: Callable[..., Tensor]
    ) -> dict[str, float]:
        """One optimizer step. Only AReaL's policy loss is replaced; any other loss stays."""
        theirs = framework("areal.trainer.ppo.actor", _INSTALL).grpo_loss_fn
        if getattr(loss_fn, "func", None) is theirs:
            loss_fn = partial(loss, loss_fn)
        taken: dict[str, float] = super().train_batch(input_, loss_fn, loss_weight_fn)  # type: ignore[misc]
        return taken


def loss(theirs: Any, logprobs: Tensor, entropy: Tensor, input_data: Any, **given: Any) -> Tensor:
    """The mean of the token losses over a micro-batch's sampled tokens.

    AReaL's own loss runs too, without gradient, because it records staleness and the difference to the engine.

    Args:
        theirs: AReaL's `grpo_loss_fn` with its settings, as `functools.partial`.
        logprobs: [N], packed, or [B, T]: position t scores token t + 1.
        entropy: of the same shape.
        input_data: AReaL's micro-batch: `logprobs` of the engine (or recomputed ones), `prox_logp`, `advantages`,
            `loss_mask`, and `cu_seqlens` if it is packed.
        given: what the engine hands over for its records.
    """
    settings = settings_from_environment()
    refuse(SimpleNamespace(**theirs.keywords), "actor", **_OTHERS)
    if input_data.get("teacher_logp") is not None:
        raise UserError(
            "a teacher's loss is part of the loss that this one replaces; train without a teacher"
        )
    with torch.no_grad():
        theirs(logprobs.detach(), entropy, input_data, **given)
    recomputed = input_data.get("prox_logp")
    if recomputed is None and settings.anchor == "old":
        refuse(SimpleNamespace(**theirs.keywords), "actor", prox_logp_method="recompute")
    old = input_data["logprobs"] if recomputed is None else recomputed
    anchor = anchor_logps(settings.anchor, old, input_data["logprobs"])
    mask = input_data["loss_mask"] != 0
    packed = {"cu_seqlens": input_data["cu_seqlens"]} if logprobs.ndim == 1 else {}
    out = settings.objective(
        logprobs, anchor, input_data["advantages"], mask, turn_ids=turns_of(mask), **packed
    )
    guards.look(out, logprobs, anchor, mask)
    framework("areal.utils", _INSTALL).stats_tracker.scalar(**floats(out.stats))
    total: Tensor = out.loss / mask.sum().clamp(min=1)
    return total


def install() -> None:
    """Let AReaL's trainer make its actors from our engines, in this process. A second call changes nothing.

    Raises:
        ImportError: if AReaL names its engines in another way than the commit that this was written for.
    """
    settings_from_environment()  # a mistake in them shows here, and not after the rollouts
    engines = framework("areal.engine", _INSTALL)
    places = getattr(engines, "_LAZY_IMPORTS", {})
    for name in _ENGINES:
        if name not in places:
            raise ImportError(
                f"areal.engine does not name {name} as in commit cbff54d64; install that commit"
            )
        places[name] = __name__
        vars(engines).pop(name, None)  # as it was imported before


def __getattr__(name: str) -> type:
    """The engines. Each imports AReaL's when it is asked for."""
    if name not in _ENGINES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    theirs = getattr(framework(_ENGINES[name], _INSTALL), name)
    made: type = globals().setdefault(name, subclass(name, _Engine, theirs, __name__))
    return made
