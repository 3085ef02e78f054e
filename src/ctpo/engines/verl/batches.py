"""How responses are dealt out to rollout batches and updates, counted as verl counts.

verl counts prompts per rollout batch (`train_batch_size`) and per update (`ppo_mini_batch_size`), and a recipe counts
responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ctpo.errors import UserError
from ctpo.training.config.from_trl import DEFAULT_OBJECTIVE
from ctpo.training.config.recipe import Recipe
from ctpo.training.config.sources import trainer_fields


@dataclass(frozen=True, kw_only=True)
class Batches:
    """How responses are dealt out, per rollout batch."""

    prompts: int
    """Prompts per rollout batch."""
    minibatch: int
    """Prompts per update."""
    passes: int
    """How often a rollout batch is trained on."""
    micro: int
    """Responses that go through the model at once."""

    @property
    def updates(self) -> int:
        """Updates per rollout batch."""
        return self.prompts // self.minibatch * self.passes


def settings_of(given: Mapping[str, Any]) -> SimpleNamespace:
    """The settings of `CTPOConfig` by name, with defaults for those that the recipe does not give."""
    defaults = {name: each.default for name, each in trainer_fields().items()}
    return SimpleNamespace(**{**defaults, "objective": DEFAULT_OBJECTIVE, **given})


def batches_of(settings: SimpleNamespace, processes: int = 1) -> Batches:
    """How verl deals out the batches that a recipe describes.

    Args:
        settings: of the recipe (`settings_of`).
        processes: how many processes train, on all machines.

    Raises:
        UserError: if an update would hold a part of a group, because verl's updates hold whole groups.
    """
    group, micro = settings.num_generations, settings.per_device_train_batch_size
    update = micro * settings.gradient_accumulation_steps * processes
    whole = settings.generation_batch_size
    if whole is None:
        steps = settings.steps_per_generation or settings.gradient_accumulation_steps
        whole = micro * steps * processes
    if update % group or whole % update:
        raise UserError(
            f"per_device_train_batch_size={micro} times gradient_accumulation_steps="
            f"{settings.gradient_accumulation_steps} and {processes} processes makes updates of {update} responses, "
            f"and verl's updates hold whole groups of num_generations={group} and divide a rollout batch of {whole}; "
            f"use a multiple of {group} that divides {whole}"
        )
    return Batches(
        prompts=whole // group, minibatch=update // group, passes=settings.num_iterations, micro=micro
    )


def rollout_batches_of(recipe: Recipe, settings: SimpleNamespace, batches: Batches, problems: int) -> int:
    """The length of the run in rollout batches.

    Raises:
        UserError: if `max_steps` is not a whole number of rollout batches.
    """
    if recipe.rollout_batches is not None:
        return recipe.rollout_batches
    if settings.max_steps <= 0:
        return max(1, int(settings.num_train_epochs * (problems // batches.prompts)))
    if settings.max_steps % batches.updates:
        nearest = max(1, round(settings.max_steps / batches.updates)) * batches.updates
        raise UserError(
            f"max_steps={settings.max_steps} is not a whole number of rollout batches of {batches.updates} updates; "
            f"use {nearest}"
        )
    return int(settings.max_steps // batches.updates)
