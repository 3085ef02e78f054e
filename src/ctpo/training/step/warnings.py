"""What a trainer warns of: settings under which a run cannot show what it is meant to."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ctpo.training.config.config import CTPOConfig

_MISMATCH = 0.1
"""Nats. The same weights in float32 agree to 1e-4, in bfloat16 to some hundredths; more is another model."""


class AnchorMismatchWarning(UserWarning):
    """Rollout engine and trainer disagree about the same weights."""


class InertObjectiveWarning(UserWarning):
    """Every importance ratio will be 1, so the objective cannot differ from any other."""


def warn_if_inert(config: CTPOConfig) -> None:
    """Warn when each rollout batch gets one update from anchors recomputed just before: every ratio is then 1."""
    if config.updates_per_rollout_batch == 1 and config.anchor == "old":
        warnings.warn(
            "Every importance ratio will be 1: one optimizer step is taken on each rollout batch "
            f"(steps_per_generation={config.steps_per_generation} x num_iterations={config.num_iterations} / "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}) from recomputed log-probs, so "
            f"objective={config.objective!r} trains exactly like any other. Raise steps_per_generation or "
            "num_iterations to train off-policy.",
            InertObjectiveWarning,
            stacklevel=3,
        )


def warn_if_engines_differ(logps_BT: Tensor, anchor_BT: Tensor, mask_BT: Tensor) -> None:
    """Before the first update trainer and rollout engine score with the same weights, so every ratio should be 1."""
    gap = torch.where(mask_BT, logps_BT.detach() - anchor_BT, 0.0).abs().max().item()
    if not gap <= _MISMATCH:
        warnings.warn(
            f"Before any update the rollout engine's log-probs differ from the trainer's by up to {gap:.3g} nats, so "
            "anchor='rollout' starts from ratios far from 1. Likely causes: a model with learned absolute positions "
            "(TRL pads on the left without position_ids), or another precision. anchor='old' recomputes them.",
            AnchorMismatchWarning,
            stacklevel=4,
        )
