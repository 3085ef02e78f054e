"""The records of a training that a Python script starts: its directory, its settings, and how it is continued."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from ctpo.errors import UserError
from ctpo.runs.checkpoints import SEAL, all_checkpoints, choose, is_checkpoint, plain, set_aside_newer
from ctpo.runs.directory import RunDirectory
from ctpo.runs.files import read_text
from ctpo.runs.script import KEY, Script, asked_for
from ctpo.tasks import Task
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.settings import ALWAYS_SAVED
from ctpo.training.processes import on_main
from ctpo.training.records.environment import describe_environment
from ctpo.training.records.events import Silent
from ctpo.training.records.recorder import Recorded, RunClock, RunRecorder, time_before
from ctpo.training.records.summary import summarise
from ctpo.training.step.state import UnusableFile

_SAMPLES: Final = 16
"""Responses that are written token by token, after rollout batches 1, 2, 4, 8 and so on."""
_DERIVED: Final = ("output_dir", "logging_dir", "accelerator_config", "run_name")
"""Settings that transformers fills in, or that say only where the run lives."""
_SECRET: Final = ("token", "password", "secret", "api_key")
"""Ends of the names of entries that are never written."""

with suppress(OSError):  # the directory may be gone
    _STARTED_IN = os.getcwd()
"""Where the process was when this package was imported, which is before most scripts move elsewhere."""


class ScriptTrainer(Recorded, Protocol):
    """A trainer as its script made it, as its records see it."""

    args: CTPOConfig
    model: Any
    state: Any
    train_dataset: Any
    eval_dataset: Any
    reward_func_names: list[str]
    recorder: RunRecorder | None
    task: Task | None

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must belong to."""

    def add_callback(self, callback: TrainerCallback) -> None:
        """Call it as training goes on."""

    def create_model_card(self) -> None:
        """Write the model card into `output_dir`."""

    def remove_callback(self, callback: TrainerCallback) -> None:
        """Call it no more."""


@contextmanager
def recorded(trainer: ScriptTrainer, resume: str | bool | None) -> Iterator[str | None]:
    """A context in which training writes its records, with the checkpoint to continue from, or None.

    Records of another run in the directory are set aside. Those of the run that is continued are kept up to the
    checkpoint. If training ends with an exception, what was recorded is whole and there is no summary. Every process
    must enter and leave.

    Args:
        trainer: what is recorded, in its `output_dir`.
        resume: what `train` got as `resume_from_checkpoint`.

    Raises:
        UserError: if the checkpoint or the records cannot be continued.
    """
    started, args = time.perf_counter(), trainer.args
    run, updates = RunDirectory(Path(args.output_dir)), args.updates_per_rollout_batch
    logs: dict[Path, str] = {}

    def settle() -> tuple[Path | None, list[dict[str, Any]]]:
        checkpoint = _checkpoint(run, resume, trainer.identity())
        if checkpoint is not None and 0 < args.max_steps <= _step(checkpoint):
            # transformers would train one update more
            raise UserError(
                f"{checkpoint} is the end of its training (max_steps={args.max_steps}); load the model from there, or "
                "raise max_steps to train further"
            )
        logs.update(run.read_logs())
        records = _records_so_far(run, checkpoint, updates)
        run.open(settings_of(trainer), describe_environment(args.world_size))
        return checkpoint, records

    checkpoint, records = on_main(settle, args.world_size, args.process_index)
    clock = RunClock(started, time_before(checkpoint, records))
    recorder = RunRecorder(
        trainer,
        run,
        clock,
        Silent(),
        updates_per_batch=updates,
        samples=_SAMPLES,
        samples_due=lambda batch: batch & (batch - 1) == 0,
        resumed_at=None if checkpoint is None else _step(checkpoint),
        judged=_judged(trainer),
    )
    if checkpoint is None:
        recorder.hold({"batch": 0, "step": 0})
    trainer.recorder = recorder
    trainer.add_callback(recorder)
    try:
        yield None if checkpoint is None else str(checkpoint)
    except UnusableFile:
        run.restore_logs(logs)  # nothing was trained, so nothing may be missing
        raise
    finally:
        recorder.write()
        trainer.remove_callback(recorder)
        trainer.recorder = None
    trainer.create_model_card()
    if args.process_index == 0:
        run.write_summary(summarise(args, run, steps=trainer.state.global_step, seconds=clock.seconds))


def settings_and_records(trainer: ScriptTrainer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of `config.yaml` and the records so far, from the run's directory if it has them."""
    run = RunDirectory(Path(trainer.args.output_dir))
    try:
        if run.config.is_file() and run.metrics.is_file():
            return run.read_recipe(), run.records()
    except UserError:  # damaged by somebody; a card must not stop a run
        pass
    return settings_of(trainer), []


def settings_of(trainer: ScriptTrainer) -> dict[str, Any]:
    """The content of `config.yaml`: the settings that differ from their defaults, what they were used on, the script.

    Entries whose names end in "token", "password" and the like are masked.
    """
    args = trainer.args
    knobs = args.objective_settings()
    changed = {name: value for name, value in _changed(args).items() if name not in ("objective", KEY)}
    content = {
        **({} if trainer.task is None else {"task": trainer.task.name}),
        "model": getattr(trainer.model.config, "_name_or_path", "") or type(trainer.model).__name__,
        "train_data": _data(trainer.train_dataset),
        "eval_data": _data(trainer.eval_dataset),
        "rewards": list(trainer.reward_func_names),
        **{name: getattr(args, name) for name in ALWAYS_SAVED},
        **changed,
        "objective": args.objective,
        "objective_kwargs": knobs,
        KEY: this_script().as_dict(),
    }
    masked: dict[str, Any] = _masked(plain(content))
    return masked


def this_script() -> Script:
    """How the running program was started."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    again = file is not None or "-c" in sys.orig_argv[1:2]
    return Script(
        file=None if file is None else os.path.join(_STARTED_IN, file),
        command=tuple(sys.orig_argv[1:]) if again else (),
        directory=_STARTED_IN,
    )


def _judged(trainer: ScriptTrainer) -> bool:
    """Whether the judge of a task gives the only reward, 1 or 0."""
    task = trainer.task
    if task is None or task.reward is not None or task.check is None:
        return False
    return list(trainer.reward_func_names) == [task.name] and task.environment is None


def _checkpoint(run: RunDirectory, resume: str | bool | None, identity: Mapping[str, Any]) -> Path | None:
    """The checkpoint that training continues from: the one that `train` names, or the last good one of the run."""
    if resume and not isinstance(resume, bool):
        return Path(resume)
    if not resume:
        asked = asked_for(run.path)
        if asked is None:
            return None
        return choose(run.path, identity, asked if is_checkpoint(asked) else None).checkpoint
    held = all_checkpoints(run.path)
    if not held:
        raise UserError(
            f"resume_from_checkpoint=True: {run.path} holds no checkpoint; leave it out to start from the beginning"
        )
    if not any((checkpoint / SEAL).is_file() for checkpoint in held):
        return held[0]  # of TRL's own trainer, which seals nothing
    choice = choose(run.path, identity)
    for name, reason in choice.refused:
        warnings.warn(f"{run.path / name} is refused: {reason}", stacklevel=2)
    return choice.checkpoint


def _records_so_far(run: RunDirectory, checkpoint: Path | None, updates: int) -> list[dict[str, Any]]:
    """The records that stay, after the others were set aside or cut off."""
    own = checkpoint is not None and checkpoint.resolve().parent == run.path.resolve()
    if checkpoint is None or not own:
        if run.holds_a_run:
            place = run.set_aside()
            warnings.warn(
                f"{run.path} held the records of another training; they are in {place} now", stacklevel=2
            )
        return []
    step = _step(checkpoint)
    set_aside_newer(run.path, checkpoint)
    if not run.metrics.exists():
        return []
    try:
        return run.rewind(step, updates, from_start=False)
    except UserError as error:
        raise UserError(f"{error}; records=False trains without") from None


def _step(checkpoint: Path) -> int:
    try:
        step = json.loads(read_text(checkpoint / TRAINER_STATE_NAME))["global_step"]
        if type(step) is not int:
            raise ValueError(f"global_step is {step!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{checkpoint} cannot be resumed: {TRAINER_STATE_NAME} is not usable ({error}); give another checkpoint"
        ) from None
    return step


def _changed(args: CTPOConfig) -> dict[str, Any]:
    """The settings with other values than their defaults, as plain values."""
    values, changed = args.to_dict(), {}
    for each in dataclasses.fields(args):
        default = each.default
        if each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        value = values.get(each.name)
        # None is what CTPOConfig leaves of settings of TRL's loss; `to_dict` shows tokens that are None as set.
        unset = value is None or getattr(args, each.name) is None
        if not unset and each.name not in _DERIVED and value != default:
            changed[each.name] = value
    return changed


def _data(dataset: Any) -> Any:
    """What identifies a dataset: the number of rows, the columns and the fingerprint of `datasets`."""
    if dataset is None:
        return None
    if isinstance(dataset, Mapping):
        return {str(name): _data(each) for name, each in dataset.items()}
    facts = {
        "rows": len(dataset) if hasattr(dataset, "__len__") else None,
        "columns": getattr(dataset, "column_names", None),
        "fingerprint": getattr(dataset, "_fingerprint", None),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: "<not written>" if each and str(name).lower().endswith(_SECRET) else _masked(each)
            for name, each in value.items()
        }
    return [_masked(each) for each in value] if isinstance(value, list) else value
