"""The linear schedule of the learning rate, which verl's FSDP engine does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from verl.workers.config import FSDPOptimizerConfig

LINEAR: Final = "linear"


@dataclass
class LinearScheduleConfig(FSDPOptimizerConfig):  # type: ignore[misc]
    """verl's settings of the optimiser with `lr_scheduler_type: linear`.

    `actor.optim._target_` names it. The rate falls to 0 over the run, in one step per rollout batch.
    """

    def __post_init__(self) -> None:
        wanted: str = self.lr_scheduler_type  # type: ignore[has-type]
        self.lr_scheduler_type = "constant"
        super().__post_init__()  # which knows only verl's own schedules
        self.lr_scheduler_type = wanted


def linear_scheduler(engine: Any, optimizer: Any) -> Any:
    """The scheduler of an engine whose settings ask for the linear schedule.

    Args:
        engine: verl's FSDP engine.
        optimizer: of the engine.
    """
    from transformers import get_linear_schedule_with_warmup

    settings = engine.optimizer_config
    return get_linear_schedule_with_warmup(
        optimizer, max(settings.lr_warmup_steps, 0), settings.total_training_steps
    )
