"""What a run tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is about to happen."""

    output: Path
    task: str
    model: str
    objective: str
    seed: int
    rollout_batches: int
    updates_per_batch: int
    responses_per_batch: int
    parameters: int
    start_batch: int
    """Rollout batches already done, when a run is resumed."""
    left_out: int = 0
    """Training prompts that are too long."""


class Listener(Protocol):
    """Watches a run. Calls come from the main process only."""

    def stage(self, what: str) -> None:
        """A step of the set-up or wrap-up has begun."""

    def notice(self, what: str) -> None:
        """Something that the user should know and need not mend now."""

    def started(self, plan: RunPlan) -> None:
        """Training is about to begin."""

    def progressed(self, batch: int, updates: int) -> None:
        """So many optimizer steps of this rollout batch are done."""

    def recorded(self, record: dict[str, Any]) -> None:
        """A line was added to the metrics."""


class Silent:
    """Watches nothing."""

    def stage(self, what: str) -> None: ...

    def notice(self, what: str) -> None: ...

    def started(self, plan: RunPlan) -> None: ...

    def progressed(self, batch: int, updates: int) -> None: ...

    def recorded(self, record: dict[str, Any]) -> None: ...
