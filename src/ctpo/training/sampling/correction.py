"""The rollout correction of a rollout batch: log-probs of the engine and of the trainer in, weights of tokens out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives import RolloutCorrection, correct_rollout
from ctpo.training.config.checks import NOTHING_CORRECTED, check_truncation
from ctpo.training.config.config import CTPOConfig
from ctpo.training.scoring.microbatch import MicroBatch
from ctpo.training.scoring.stats import CORRECTION

_IN_PROCESS: Final = "ctpo_samples_in_process"

Scorer = Callable[[dict[str, Any]], Tensor]
"""Gives the trainer's log-probs [B, T] of the rollout batch in TRL's dictionary."""


def mark_in_process(rollout_func: Callable[..., Any]) -> None:
    """Note on a rollout function that it samples from the model in training, or from the trainer's own vLLM."""
    setattr(rollout_func, _IN_PROCESS, True)


def correction_for(args: CTPOConfig, rollout_func: Callable[..., Any] | None) -> RolloutCorrection | None:
    """The correction that a trainer makes; None for none.

    Args:
        args: the trainer's settings.
        rollout_func: what samples; None if TRL does.

    Raises:
        ValueError: if the engine's log-probs are used and are of a distribution that was cut (top-p, top-k, min-p), or
            if knobs are given and nothing is corrected.
    """
    foreign = not args.use_vllm and rollout_func is not None and not getattr(rollout_func, _IN_PROCESS, False)
    correction = args.build_correction(other_engine=foreign)
    if correction is None and args.rollout_correction_kwargs:
        raise ValueError(NOTHING_CORRECTED)
    if foreign and (correction is not None or args.anchor == "rollout"):
        check_truncation(args, "the rollout engine")
    return correction


def corrected(
    rollouts: dict[str, Any], correction: RolloutCorrection | None, score: Scorer, *, required: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """TRL's dictionary of a rollout batch with the weights of the correction in place of TRL's own, and statistics.

    Args:
        rollouts: of one process.
        correction: None takes TRL's weights out and puts none in.
        score: called if TRL has not scored the rollout batch.
        required: whether an engine without log-probs is an error. Otherwise there is then nothing to correct.

    Raises:
        ValueError: if log-probs are required and the engine reports none.
    """
    rollouts = {name: value for name, value in rollouts.items() if name != "importance_sampling_ratio"}
    if correction is None:
        return rollouts, {}
    batch = MicroBatch.of(rollouts)
    if batch.rollout_logps is None:
        if required:
            raise ValueError(
                "rollout_correction needs the rollout engine's log-probs, which it does not report; give a "
                "rollout_func that returns logprobs, use vLLM, or set rollout_correction=none"
            )
        return rollouts, {}
    old_logps = score(rollouts) if batch.old_logps is None else batch.old_logps
    made = correct_rollout(
        old_logps,
        batch.rollout_logps,
        batch.response_mask,
        correction,
        turn_ids=batch.turn_ids if correction.needs_turns else None,
    )
    rollouts |= {"old_per_token_logps": old_logps, "rollout_weights": made.weights}
    if correction.denominator == "kept":
        rollouts["rejection_mask"] = made.rejection_mask
    stats = {f"{CORRECTION}{name}": value for name, value in made.stats.items()}
    weights, mask = torch.where(made.rejected, 0.0, made.weights), batch.response_mask
    stats |= {
        f"{CORRECTION}weight_min": torch.where(mask, weights, torch.inf).amin(),
        f"{CORRECTION}weight_max": torch.where(mask, weights, 0.0).amax(),
        f"{CORRECTION}tokens": mask.sum(),
    }
    return rollouts, stats
