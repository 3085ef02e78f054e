"""What a trainer must save, beside the weights and the optimizer, to continue exactly in the middle of a rollout batch.

TRL keeps the rollout batch that it trains on only in memory. A run resumed between two rollout batches is unaffected.
A run resumed within one would sample again, from a newer policy, and would differ from the run that it continues. So
the rollout batch is saved with each checkpoint, together with the statistics gathered in it, what the objective
remembers between calls, and the older weights that sample (`behaviour_lag`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import torch

from ctpo.errors import UserError
from ctpo.objectives.quantile_gate import Smoothing

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
