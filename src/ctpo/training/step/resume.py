"""From a trainer to the `RolloutState` in its checkpoint, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, Protocol

from ctpo.objectives import Objective
from ctpo.training.sampling.account import RolloutAccount
from ctpo.training.step.state import RolloutState, memories


class Part(Protocol):
    """A part of a trainer that gathers or remembers something."""

    def state_dict(self) -> Any:
        """What a resumed run needs."""

    def load_state_dict(self, state: Any) -> None:
        """Continue from what `state_dict` returned."""


class ResumeView(Protocol):
    """What is saved of a trainer. Names with an underscore are TRL's own; a part that is not there is None."""

    args: Any
    objective: Objective
    objective_stats: dict[str, Any]
    rollout_account: RolloutAccount
    window: Any
    diagnostics: Part
    guard: Any
    behaviour: Part
    recorder: Part | None
    groups: Part | None
    critic: Part | None
    _step: int
    _buffered_inputs: Any
    _metrics: Any


_ALWAYS: Final = ("diagnostics", "guard", "behaviour")
_MAYBE: Final = ("recorder", "groups", "critic")


def rollout_state(trainer: ResumeView) -> RolloutState:
    """What this process must save to continue in the middle of the rollout batch."""
    parts = {name: getattr(trainer, name) for name in (*_ALWAYS, *_MAYBE)}
    return RolloutState(
        world_size=trainer.args.world_size,
        step=trainer._step,
        buffered_inputs=trainer._buffered_inputs,
        trl_metrics=dict(trainer._metrics["train"]),
        objective_stats=trainer.objective_stats["train"].state_dict(),
        objective_memory=[memory.value for memory in memories(trainer.objective)],
        rollout_account=asdict(trainer.rollout_account),
        window=trainer.window.state_dict() if trainer.window.open else None,
        **{name: None if part is None else part.state_dict() for name, part in parts.items()},
    )


def restore(trainer: ResumeView, state: RolloutState) -> None:
    """Let the trainer continue from what `rollout_state` returned."""
    trainer._step = state.step
    trainer._buffered_inputs = state.buffered_inputs
    trainer._metrics["train"].update(state.trl_metrics)
    trainer.objective_stats["train"].load_state_dict(state.objective_stats)
    for memory, value in zip(memories(trainer.objective), state.objective_memory, strict=True):
        memory.value = value
    trainer.rollout_account = RolloutAccount(**state.rollout_account)
    for name in (*_ALWAYS, *_MAYBE):
        part, saved = getattr(trainer, name), getattr(state, name)
        if part is not None and (name in _ALWAYS or saved is not None):
            part.load_state_dict(saved)
    if state.window is None:  # an earlier release, or a run without records
        skipped = trainer.guard.total - trainer.guard.skipped
        state_of_log = {"stats": state.objective_stats, "metrics": {}, "seen": {}, "skipped": skipped}
        trainer.window.load_state_dict(state_of_log)
    else:
        trainer.window.load_state_dict(state.window)
