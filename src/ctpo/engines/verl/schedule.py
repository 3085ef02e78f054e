"""The schedules of the learning rate as our trainer has them: one step per update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verl.workers.config import FSDPOptimizerConfig


@dataclass
class ScheduleConfig(FSDPOptimizerConfig):  # type: ignore[misc]
    """verl's settings of the optimiser, with a schedule of transformers in place of verl's own.

    `actor.optim._target_` names this class.
    """

    schedule: str = "constant"
    """The name of the schedule in transformers (`lr_scheduler_type` of a recipe)."""
    updates: int = 1
    """How many updates one of verl's steps has. verl knows the length of a run in its own steps."""


def scheduler(engine: Any, optimizer: Any) -> Any:
    """The scheduler of an engine that has a `ScheduleConfig`.

    Args:
        engine: verl's FSDP engine.
        optimizer: of the engine.
    """
    from transformers import get_scheduler

    settings = engine.optimizer_config
    return get_scheduler(
        settings.schedule,
        optimizer,
        num_warmup_steps=max(settings.lr_warmup_steps, 0),
        num_training_steps=settings.total_training_steps * settings.updates,
    )
