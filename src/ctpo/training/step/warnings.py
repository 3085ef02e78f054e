"""Warnings about settings under which a run cannot show what it is meant to show."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ctpo.training.config.config import CTPOConfig

_MISMATCH_NATS = 0.1
"""The largest difference of a log-prob that rounding explains. The same weights agree to 1e-4 nats in float32 and to
some hundredths in bfloat16."""


class AnchorMismatchWarning(UserWarning):
    """The rollout engine and the trainer give different log-probs for the same weights."""


class InertObjectiveWarning(UserWarning):
    """Every importance ratio will be 1, so all objectives train alike."""


def warn_if_inert(config: CTPOConfig) -> None:
    """Warn if each rollout batch gets a single update from log-probs recomputed just before it.

    Every ratio is then 1.
    """
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


class NoCriticWarning(UserWarning):
    """The objective is PPO's, and its advantages are not."""


def warn_without_critic(config: CTPOConfig) -> None:
    """Warn if PPO's loss gets advantages without a critic."""
    if config.objective == "ppo" and config.advantages != "gae":
        warnings.warn(
            f"objective='ppo' is PPO's loss alone, with advantages={config.advantages!r}, which no critic gives. "
            "advantages='gae' trains a critic too, as PPO does (docs/how-to/critic.md).",
            NoCriticWarning,
            stacklevel=3,
        )


def warn_if_engines_differ(logps_BT: Tensor, anchor_BT: Tensor, mask_BT: Tensor) -> None:
    """Warn if log-probs of the trainer and of the rollout engine differ by more than rounding.

    To be called before the first update, when both have the same weights, so that every ratio should be 1.

    Args:
        logps_BT: the trainer's.
        anchor_BT: the rollout engine's.
        mask_BT: boolean, true on the tokens that the model sampled.
    """
    gap = torch.where(mask_BT, logps_BT.detach() - anchor_BT, 0.0).abs().max().item()
    if not gap <= _MISMATCH_NATS:
        warnings.warn(
            f"Before any update the rollout engine's log-probs differ from the trainer's by up to {gap:.3g} nats, so "
            "anchor='rollout' starts from ratios far from 1. Likely causes: a model with learned absolute positions "
            "(TRL pads on the left without position_ids), or another precision. anchor='old' recomputes them.",
            AnchorMismatchWarning,
            stacklevel=4,
        )
