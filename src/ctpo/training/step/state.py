"""What a trainer must save, beside the weights and the optimizer, to continue exactly in the middle of a rollout batch.

TRL keeps the rollout batch that it trains on only in memory. A run resumed between two rollout batches is unaffected.
A run resumed within one would sample again, from a newer policy, and would differ from the run that it continues. So
the rollout batch is saved with each checkpoint, together with the statistics gathered in it, what the objective
remembers between calls, and the older weights that sample (`behaviour_lag`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from ctpo.errors import UserError
from ctpo.objectives.quantile_gate import Smoothing
from ctpo.runs.checkpoints import step_of
from ctpo.runs.files import read_text

_FILE: Final = "rollout_buffer_{rank}.pt"


@dataclass(frozen=True, kw_only=True)
class RolloutState:
    """One process's share of a rollout batch, and how far training on it has come. Tensors and plain values only."""

    world_size: int
    """Processes of the run; the same number must continue it."""
    step: int
    """Micro-batches trained on so far."""
    buffered_inputs: Any
    """TRL's dictionaries, one per micro-batch of the rollout batch; None before the first."""
    trl_metrics: dict[str, list[float]]
    """What TRL has gathered since its last log line."""
    objective_stats: Any
    objective_memory: list[Any]
    """The values that parts of the objective remember, in the order of `memories`."""
    diagnostics: Any
    guard: Any
    behaviour: Any
    rollout_account: dict[str, Any]
    window: Any = None
    """What the next record needs; None in checkpoints of earlier releases."""
    recorder: Any = None
    groups: dict[str, Any] | None = None
    """How far the training data is drawn, and the estimates of a curriculum; None if TRL draws it."""
    critic: dict[str, Any] | None = None
    """What a critic needs beside `critic.pt`; None if there is none."""


class UnusableFile(UserError):
    """A run cannot go on from a file of its checkpoint."""


@contextmanager
def readable(checkpoint: str | Path | None) -> Iterator[None]:
    """A context in which a file of a checkpoint that cannot be used becomes an error of one line.

    A seal shows damage that came later, not what somebody else put into a checkpoint before sealing it.

    Raises:
        UnusableFile: instead of whatever torch, safetensors or transformers raise.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise UnusableFile(
            f"{checkpoint} holds a file that cannot be used ({type(error).__name__}: {lines[0][:200]}); resume from "
            "another checkpoint, or start a new run"
        ) from None


def check_trainer_state(checkpoint: Path) -> None:
    """Check that `trainer_state.json` holds what transformers' trainer goes on from.

    Raises:
        UserError: if it does not.
    """
    with readable(checkpoint):
        state = json.loads(read_text(checkpoint / TRAINER_STATE_NAME))
        if not isinstance(state, dict) or state.get("global_step") != step_of(checkpoint):
            raise ValueError(f"{TRAINER_STATE_NAME} does not belong to step {step_of(checkpoint)}")
        for name, value in vars(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))).items():
            usual = getattr(TrainerState(), name, None)
            number = isinstance(usual, int | float) and not isinstance(usual, bool)
            fits = (
                isinstance(value, int | float) if number else usual is None or isinstance(value, type(usual))
            )
            if not (fits or (value is None and usual is None)):
                raise ValueError(f"{TRAINER_STATE_NAME}: {name} is {value!r}")
        # The problems fill at least one rollout batch, so an update is at most one epoch.
        if not isinstance(state.get("epoch"), int | float) or not 0 <= state["epoch"] <= state["global_step"]:
            raise ValueError(f"{TRAINER_STATE_NAME}: epoch is {state.get('epoch')!r}")


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Check that the moments in an optimizer's state have the shapes of its parameters; torch does not when it loads.

    Raises:
        ValueError: if they do not.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(
                    f"{name} has the shape {list(value.shape)}, its weight {list(parameter.shape)}"
                )


def save_state(state: RolloutState, folder: Path, rank: int) -> None:
    """Write the state of process `rank` into the folder of a checkpoint."""
    torch.save(vars(state), folder / _FILE.format(rank=rank))


def load_state(checkpoint: Path, rank: int, world_size: int, device: torch.device) -> RolloutState | None:
    """The state of process `rank` in a checkpoint; None if it has none because TRL's own trainer wrote it.

    Args:
        checkpoint: its folder.
        rank: this process.
        world_size: how many processes there are.
        device: where the tensors go.

    Raises:
        UserError: if another number of processes wrote the checkpoint.
    """
    if not (checkpoint / _FILE.format(rank=0)).is_file():
        return None
    path = checkpoint / _FILE.format(rank=rank)
    # Several processes on CPUs have the devices cpu:0, cpu:1, …, which exist for nobody else.
    place = "cpu" if device.type == "cpu" else device
    values = torch.load(path, map_location=place, weights_only=True) if path.is_file() else {}
    if values.get("world_size") != world_size:
        raise UserError(
            f"{checkpoint} was saved by {values.get('world_size', 'fewer')} processes and this is "
            f"{world_size}; resume it with the same number"
        )
    return RolloutState(**values)


def memories(part: Any) -> list[Smoothing]:
    """The parts of an objective that remember a value between calls, in the order of their fields."""
    if isinstance(part, Smoothing):
        return [part]
    if not is_dataclass(part) or isinstance(part, type):
        return []
    return [memory for each in fields(part) for memory in memories(getattr(part, each.name))]


def skip_epochs(sampler: Any, epochs: int) -> None:
    """Draw the orders of the epochs that are done, so that the sampler draws the next epoch's order next.

    TRL's sampler shuffles with a random generator of its own, which no checkpoint holds. Without this, a resumed run
    would go through its second epoch in the order of the first.
    """
    if getattr(sampler, "shuffle", False):
        for _ in range(epochs):
            torch.randperm(sampler.num_samples, generator=sampler.generator)
