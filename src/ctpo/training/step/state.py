"""The rollout batch in use and the state that is ours, saved with each checkpoint.

TRL keeps the rollouts it is training on in memory only. A run resumed between two generations is unaffected;
one resumed in the middle would generate again from a newer policy and go another way than the run it continues.
The statistics gathered so far in the batch go with it, so that the resumed run's records are the same too, and
what an objective remembers between calls (a smoothed threshold), and the older weights that sample (behaviour_lag).
"""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ctpo.errors import UserError
from ctpo.objectives.quantile_gate import Smoothing
from ctpo.training.sampling.rollout_func import RolloutAccount

if TYPE_CHECKING:
    from ctpo.training.step.trainer import CTPOTrainer

_FILE = "rollout_buffer_{rank}.pt"


def save_rollout_buffer(trainer: CTPOTrainer, folder: Path) -> None:
    """Write this process's share of the rollout batch, and how far into it training is."""
    state = {
        "world_size": trainer.args.world_size,
        "step": trainer._step,
        "buffered_inputs": trainer._buffered_inputs,
        "trl_metrics": dict(trainer._metrics["train"]),
        "objective_stats": trainer.objective_stats["train"].state_dict(),
        "objective_memory": [memory.value for memory in memories(trainer.objective)],
        "diagnostics": trainer.diagnostics.state_dict(),
        "guard": trainer.guard.state_dict(),
        "behaviour": trainer.behaviour.state_dict(),
        "rollout_account": asdict(trainer.rollout_account),
    }
    torch.save(state, folder / _FILE.format(rank=trainer.args.process_index))


def load_rollout_buffer(trainer: CTPOTrainer, checkpoint: str) -> None:
    """Read back what `save_rollout_buffer` wrote; a checkpoint without one (TRL's own) starts a new batch.

    Raises:
        UserError: if another number of processes wrote it.
    """
    skip_epochs(trainer)
    if not (Path(checkpoint) / _FILE.format(rank=0)).is_file():
        return
    path = Path(checkpoint) / _FILE.format(rank=trainer.args.process_index)
    device = trainer.accelerator.device
    place = "cpu" if device.type == "cpu" else device  # of several processes on CPUs it is cpu:0, cpu:1
    held = torch.load(path, map_location=place, weights_only=True) if path.is_file() else {}
    if held.get("world_size") != trainer.args.world_size:
        raise UserError(
            f"{checkpoint} was saved by {held.get('world_size', 'fewer')} processes and this is "
            f"{trainer.args.world_size}; resume it with the same number"
        )
    trainer._step = held["step"]
    trainer._buffered_inputs = held["buffered_inputs"]
    trainer._metrics["train"].update(held["trl_metrics"])
    trainer.objective_stats["train"].load_state_dict(held["objective_stats"])
    for memory, value in zip(memories(trainer.objective), held["objective_memory"], strict=True):
        memory.value = value
    trainer.diagnostics.load_state_dict(held["diagnostics"])
    trainer.guard.load_state_dict(held["guard"])
    trainer.behaviour.load_state_dict(held["behaviour"])
    trainer.rollout_account = RolloutAccount(**held["rollout_account"])


def memories(part: Any) -> list[Smoothing]:
    """What an objective's parts remember between calls, in the order of their fields."""
    if isinstance(part, Smoothing):
        return [part]
    if not is_dataclass(part) or isinstance(part, type):
        return []
    return [memory for each in fields(part) for memory in memories(getattr(part, each.name))]


def skip_epochs(trainer: CTPOTrainer) -> None:
    """Draw the orders of the epochs already done.

    TRL's sampler shuffles with a generator of its own that no checkpoint holds: a resumed run would go through
    its second epoch in the order of the first.
    """
    sampler = trainer._train_sampler
    if getattr(sampler, "shuffle", False):
        for _ in range(int(trainer.state.epoch or 0)):
            torch.randperm(sampler.num_samples, generator=sampler.generator)
