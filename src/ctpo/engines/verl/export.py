"""The last checkpoint of verl's as a model folder of transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ctpo.errors import UserError

_LATEST = "latest_checkpointed_iteration.txt"


def last_step(checkpoints: Path) -> int | None:
    """The rollout batch after which verl saved last; None if it has saved nothing."""
    try:
        return int((checkpoints / _LATEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def export(checkpoints: Path, model: Path) -> None:
    """Save the weights of verl's last checkpoint, whose shards are merged, as transformers does.

    verl's own program merges, in a process of its own.

    Args:
        checkpoints: the folder of verl's checkpoints.
        model: the folder that is written.

    Raises:
        UserError: if there is no checkpoint, or its shards cannot be merged.
    """
    step = last_step(checkpoints)
    if step is None:
        raise UserError(
            f"{checkpoints} has no checkpoint of verl's, so there is no model to save; train again"
        )
    actor = checkpoints / f"global_step_{step}" / "actor"
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    merged = subprocess.run(
        [*command, "--local_dir", str(actor), "--target_dir", str(model)], capture_output=True, text=True
    )
    if merged.returncode:
        reason = (merged.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"{actor} cannot be merged into {model} ({reason}); run {' '.join(command[1:])} --local_dir {actor}"
        )
