"""The events that a run reports to a listener, such as the display of `ctpo train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run is about to do."""

    output: Path
    """The run's directory."""
    task: str
    model: str
    objective: str
    seed: int
    rollout_batches: int
    """Rollout batches of the whole run."""
    updates_per_batch: int
    """Optimizer steps per rollout batch."""
    responses_per_batch: int
    parameters: int
    """Number of parameters of the model."""
    start_batch: int
    """Rollout batches already done, if the run is resumed."""
    left_out: int = 0
    """Training prompts that are left out because they are too long."""


class Listener(Protocol):
    """Follows a run. Only the main process calls it."""

    def stage(self, what: str) -> None:
        """A step before or after training has started, for example "loading the model"."""

    def notice(self, what: str) -> None:
        """Something happened that the user should know, but that needs no action now."""

    def started(self, plan: RunPlan) -> None:
        """Training is about to start."""

    def progressed(self, batch: int, updates: int) -> None:
        """This many optimizer steps of this rollout batch are done."""

    def recorded(self, record: dict[str, Any]) -> None:
        """A line was added to the metrics."""


class Silent:
    """A listener that does nothing."""

    def stage(self, what: str) -> None: ...

    def notice(self, what: str) -> None: ...

    def started(self, plan: RunPlan) -> None: ...

    def progressed(self, batch: int, updates: int) -> None: ...

    def recorded(self, record: dict[str, Any]) -> None: ...
