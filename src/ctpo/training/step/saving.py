"""Writing a checkpoint so that a kill or a full disk at any moment leaves the previous one as it was.

transformers and TRL write into `.saving/checkpoint-N`. When every process is done, the main one seals the folder and
moves it into place in one rename. Only then does it remove the oldest checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ctpo.errors import UserError
from ctpo.runs.checkpoints import STAGING, advice, is_disk_error, publish, reason, rotate, seal
from ctpo.training.view import TrainerView


class WriteFailed(UserError):
    """A file of the run could not be written."""

    of_one_process = True


@contextmanager
def staged(trainer: TrainerView, identity: Mapping[str, Any]) -> Iterator[Path]:
    """A context with a folder to write the checkpoint of this step into. On leaving, it becomes the checkpoint.

    Every process must enter and leave it.

    Args:
        trainer: whose checkpoint it is.
        identity: what the seal says that the checkpoint belongs to.

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
        _place_best(trainer, folder, run / name)
        trainer.accelerator.wait_for_everyone()
        if trainer.args.should_save:
            seal(folder, identity)
            publish(folder, run / name)
            best = trainer.state.best_model_checkpoint
            rotate(run, trainer.args.save_total_limit, None if best is None else Path(best).name)
        trainer.accelerator.wait_for_everyone()
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_error(error):
            raise
        shutil.rmtree(run / STAGING, ignore_errors=True)
        raise WriteFailed(f"{name} could not be written to {run} ({reason(error)}); {advice(run)}") from None


def _place_best(trainer: TrainerView, folder: Path, place: Path) -> None:
    """If this is the best checkpoint so far, let transformers look for it where it will be, and not in `.saving/`."""
    best = trainer.state.best_model_checkpoint
    if best is not None and Path(best) == folder:
        trainer.state.best_model_checkpoint = str(place)
        if trainer.args.should_save:
            trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))


@contextmanager
def full_disk_in_one_line(run: Path) -> Iterator[None]:
    """A context in which a disk error while writing any file of the run becomes an error of one line.

    Raises:
        WriteFailed: instead of the original error.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError) or not is_disk_error(error):
            raise
        what = getattr(error, "filename", None) or run
        raise WriteFailed(f"{what} could not be written ({reason(error)}); {advice(run)}") from None
