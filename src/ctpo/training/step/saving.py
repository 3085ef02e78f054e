"""Writing a checkpoint so that a kill or a full disk at any moment leaves the one before it as it was.

transformers and TRL write into `.saving/checkpoint-N`; when every process is done, the main one seals it, moves it
into place in one rename, and only then removes the oldest.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ctpo.errors import UserError
from ctpo.runs.checkpoints import all_checkpoints, last_good, seal, sync_folder

if TYPE_CHECKING:
    from ctpo.training.step.trainer import CTPOTrainer

STAGING = ".saving"
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_WORDS = ("no space left", "file too large", "disk quota", "file write failed", "unexpected pos", "iostream")


class WriteFailed(UserError):
    """A file of the run could not be written."""

    of_one_process = True


@contextmanager
def staged(trainer: CTPOTrainer) -> Iterator[Path]:
    """A folder to write the checkpoint of this step into; on leaving, it becomes the checkpoint.

    Raises:
        WriteFailed: if it cannot be written.
    """
    run = Path(trainer.args.output_dir)
    name = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    folder = run / STAGING / name
    try:
        if trainer.args.should_save:
            shutil.rmtree(run / STAGING, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            seal(folder, trainer.identity())
            publish(folder, run / name)
            rotate(run, trainer.args.save_total_limit)
        trainer.accelerator.wait_for_everyone()
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_error(error):
            raise
        shutil.rmtree(run / STAGING, ignore_errors=True)
        raise WriteFailed(f"{name} could not be written to {run} ({reason(error)}); {advice(run)}") from None


def publish(folder: Path, target: Path) -> None:
    """Move a sealed folder into place; one of that name (a step done again) makes way."""
    old = folder.parent / "old"
    if target.exists():
        os.replace(target, old)
    os.replace(folder, target)
    sync_folder(target.parent)
    shutil.rmtree(folder.parent, ignore_errors=True)


def rotate(run: Path, limit: int | None) -> None:
    """Keep the newest `limit` checkpoints. One is moved away before it is deleted: never half a checkpoint."""
    for old in all_checkpoints(run)[limit:] if limit else []:
        away = run / STAGING / old.name
        away.parent.mkdir(exist_ok=True)
        os.replace(old, away)
    shutil.rmtree(run / STAGING, ignore_errors=True)


def is_disk_error(error: BaseException) -> bool:
    """Whether writing failed for want of room, or because the disk is unwell."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK
    return any(word in str(error).lower() for word in _WORDS)


def reason(error: BaseException) -> str:
    """The cause in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).lower()
    cut_short = "a file was cut short, as on a full disk"  # all that torch.save says
    return next((os.strerror(number) for number in _DISK if os.strerror(number).lower() in text), cut_short)


def advice(run: Path, *, room: bool = True) -> str:
    """What there is to go on from, and how; `room` says that the disk was full."""
    good, first = last_good(run), "free some space and " if room else ""
    if good is None:
        return f"no checkpoint was saved before: {first}start again"
    return f"{good.name} is intact: {first}continue with `ctpo train --resume {run}`"


@contextmanager
def full_disk_in_one_line(run: Path) -> Iterator[None]:
    """Any other file of a run that cannot be written for want of room ends it with one line, too.

    Raises:
        WriteFailed: instead of the error underneath.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError) or not is_disk_error(error):
            raise
        what = getattr(error, "filename", None) or run
        raise WriteFailed(f"{what} could not be written ({reason(error)}); {advice(run)}") from None
