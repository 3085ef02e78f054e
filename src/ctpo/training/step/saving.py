"""Writing a checkpoint so that a kill or a full disk at any moment leaves the one before it as it was.

transformers and TRL write into `.saving/checkpoint-N`; when every process is done, the main one seals it, moves it
into place in one rename, and only then removes the oldest.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ctpo.errors import UserError
from ctpo.runs.checkpoints import STAGING, advice, is_disk_error, publish, reason, rotate, seal

if TYPE_CHECKING:
    from ctpo.training.step.trainer import CTPOTrainer



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
