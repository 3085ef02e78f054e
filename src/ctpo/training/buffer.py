"""The rollout batch in use, saved with each checkpoint.

TRL keeps the rollouts it is training on in memory only. A run resumed between two generations is unaffected;
one resumed in the middle would generate again from a newer policy and go another way than the run it continues.
The statistics gathered so far in the batch go with it, so that the resumed run's records are the same too.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ctpo.training.rollout import RolloutAccount

if TYPE_CHECKING:
    from ctpo.training.trainer import CTPOTrainer

_FILE = "rollout_buffer_{rank}.pt"


def save_rollout_buffer(trainer: CTPOTrainer) -> None:
    """Write this process's share of the rollout batch, and how far into it training is."""
    folder = Path(trainer.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "step": trainer._step,
        "buffered_inputs": trainer._buffered_inputs,
        "trl_metrics": dict(trainer._metrics["train"]),
        "objective_stats": trainer.objective_stats["train"].state_dict(),
        "rollout_account": asdict(trainer.rollout_account),
    }
    torch.save(state, folder / _FILE.format(rank=trainer.args.process_index))


def load_rollout_buffer(trainer: CTPOTrainer, checkpoint: str) -> None:
    """Read back what `save_rollout_buffer` wrote; a checkpoint without one (TRL's own) starts a new batch."""
    path = Path(checkpoint) / _FILE.format(rank=trainer.args.process_index)
    if not path.is_file():
        return
    state = torch.load(path, map_location=trainer.accelerator.device, weights_only=True)
    trainer._step = state["step"]
    trainer._buffered_inputs = state["buffered_inputs"]
    trainer._metrics["train"].update(state["trl_metrics"])
    trainer.objective_stats["train"].load_state_dict(state["objective_stats"])
    trainer.rollout_account = RolloutAccount(**state["rollout_account"])
