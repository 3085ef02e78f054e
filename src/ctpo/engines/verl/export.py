"""verl's checkpoints: the one to go on from, and the last one as a model folder of transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from ctpo.errors import UserError

CHECKPOINT: Final = "global_step_"
"""What verl calls a checkpoint, before the number of rollout batches done."""
_LATEST: Final = "latest_checkpointed_iteration.txt"
_POLICY: Final = "actor"


def step_of(checkpoint: Path) -> int:
    """The number of rollout batches done when this checkpoint was saved."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def last_checkpoint(folder: Path, recorded: int) -> Path | None:
    """The newest whole checkpoint whose rollout batch is recorded; None if there is none.

    verl saves a checkpoint before the batch is recorded. One that a kill left without its record is passed over.

    Args:
        folder: of verl's checkpoints.
        recorded: the last rollout batch that is recorded.
    """
    try:
        newest = min(int((folder / _LATEST).read_text(encoding="utf-8")), recorded)
    except (OSError, ValueError):
        return None
    found = [each for each in folder.glob(f"{CHECKPOINT}*") if (each / _POLICY).is_dir()]
    usable = [
        each for each in found if each.name.removeprefix(CHECKPOINT).isdigit() and step_of(each) <= newest
    ]
    return max(usable, key=step_of, default=None)


def export(checkpoint: Path, model: Path) -> None:
    """Save the weights of a checkpoint, whose shards are merged, as transformers does.

    verl's own program merges, in a process of its own.

    Args:
        checkpoint: of verl's.
        model: the folder that is written.

    Raises:
        UserError: if there is no such checkpoint, or its shards cannot be merged.
    """
    policy = checkpoint / _POLICY
    if not policy.is_dir():
        raise UserError(f"{checkpoint} is no checkpoint of verl's, so there is no model to save; train again")
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    merged = subprocess.run(
        [*command, "--local_dir", str(policy), "--target_dir", str(model)], capture_output=True, text=True
    )
    if merged.returncode:
        reason = (merged.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"{policy} cannot be merged into {model} ({reason}); run {' '.join(command[1:])} --local_dir {policy}"
        )
