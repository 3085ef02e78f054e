"""One warm-up, from checked settings to a saved model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from ctpo.errors import UserError
from ctpo.evaluation.model import load_model, load_tokenizer
from ctpo.rollout.tools import open_tools
from ctpo.runs.atomic import write_json, write_json_lines
from ctpo.runs.checkpoints import (
    Choice,
    Unusable,
    choose,
    compare,
    is_checkpoint,
    sealed_identity,
    set_aside_newer,
    step_of,
)
from ctpo.runs.command import WARM_UP
from ctpo.runs.directory import RunDirectory
from ctpo.runs.files import read_text
from ctpo.runs.identity import deciding_settings
from ctpo.tasks import Task, get_task
from ctpo.tasks.arithmetic import model_location
from ctpo.tasks.task import check_ready, with_template_kwargs
from ctpo.training.config.trust import check_run
from ctpo.training.config.warm_up import MAY_CHANGE, WarmUpRecipe, build, resolved, resumed_keys
from ctpo.training.processes import any_of, on_main, peers_in_one_line, unused_sharding
from ctpo.training.records.environment import describe_environment
from ctpo.training.run.early import check_loggers, check_optimizer, check_schedule
from ctpo.training.run.lora import adapter_facts, lora_config, save
from ctpo.training.run.stop import StopCleanly
from ctpo.training.step.saving import full_disk_in_one_line
from ctpo.training.step.state import UnusableFile
from ctpo.training.warm_up.demonstrations import Demonstration, Demonstrator, answer_line_of
from ctpo.training.warm_up.rows import Rows, make_rows, read_kept
from ctpo.training.warm_up.trainer import WarmUpTrainer

_ROWS, _COUNTS, _SAMPLES = "rows.jsonl", "rows.json", "samples.jsonl"
_SHOWN: Final = 16
"""Demonstrations that are stored as text."""


class Listener(Protocol):
    """Follows a warm-up. Only the main process calls it."""

    def stage(self, what: str) -> None:
        """A step before or after training has started."""

    def notice(self, what: str) -> None:
        """Something happened that the user should know."""

    def prepared(self, kept: int, dropped: Mapping[str, int], first: Mapping[str, str]) -> None:
        """The rows are made: how many, how many were left out by reason, and the first of those."""

    def started(self, output: Path, steps: int, done: int, parameters: int) -> None:
        """Training is about to start, or to go on after `done` steps."""

    def recorded(self, record: Mapping[str, Any]) -> None:
        """An optimizer step is done."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a warm-up ended."""

    run: RunDirectory
    finished: bool
    summary: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a warm-up would train on."""

    rows: Rows
    first: Demonstration
    prompt: str
    """The first prompt as the model reads it."""


def warm_up(
    keys: Mapping[str, Any],
    *,
    listener: Listener,
    resume: Path | None = None,
    started: float | None = None,
    trust: bool = False,
) -> Outcome:
    """Train a model on worked solutions as a recipe describes, and save the model and the records.

    Args:
        keys: of the recipe (`ctpo warm-up --help`). With `resume`, keys that change those of the run.
        listener: is notified as the run goes on.
        resume: the directory of a run to continue, or one of its checkpoints.
        started: the reading of `time.perf_counter` from which the run's time counts. None counts from this call.
        trust: with `resume`, run the code and obey the unsafe settings that the run's directory names.

    Raises:
        UserError: if a key, a file, the data or the output directory cannot be used.
    """
    started = time.perf_counter() if started is None else started
    run, keys = _run_of(keys, resume, trust=trust)
    recipe, config = build({**keys, "output_dir": str(run.path)})
    with peers_in_one_line(config):
        return _warm_up(run, keys, recipe, config, resume, listener, started)


def _warm_up(
    run: RunDirectory,
    keys: dict[str, Any],
    recipe: WarmUpRecipe,
    config: Any,
    resume: Path | None,
    listener: Listener,
    started: float,
) -> Outcome:
    """Make the rows, load the model, train, and save. Every process must call it."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    task = _task(recipe)
    identity = {"recipe": deciding_settings(resolved(keys), MAY_CHANGE)}
    if resume is None:
        on_main(run.check_free, config.world_size, config.process_index)
    made: list[Demonstration] = []
    rows = _stored_rows(run)
    if rows is None:
        listener.stage("making demonstrations")
        rows, made = on_main(
            lambda: _demonstrations(recipe, task, config), config.world_size, config.process_index
        )
    listener.prepared(len(rows.kept), rows.dropped, rows.first_dropped)
    identity["recipe"]["rows"] = rows.digest
    choice = Choice(checkpoint=None)
    if resume is not None:
        named = resume if is_checkpoint(resume) else None
        choice = choose(run.path, {"world_size": config.world_size, **identity}, named)
        for notice in choice.notices(run.path):
            listener.notice(notice)
    train, heldout = _split(rows, recipe.heldout_rows, config.seed)
    listener.stage("loading the model")
    with full_disk_in_one_line(run.path):
        trainer = _trainer(recipe, config, train)
        trainer.run_identity = identity
        unused = unused_sharding(trainer.accelerator, config.fsdp, config.deepspeed)
        if unused is not None:
            listener.notice(unused)
        if choice.checkpoint is not None:
            _check_checkpoint(trainer, choice.checkpoint)
        if config.process_index == 0:
            run.open(resolved(keys), describe_environment(config.world_size), new=resume is None)
            if made:
                _store_rows(run, rows, made)
            if resume is not None:
                set_aside_newer(run.path, choice.checkpoint)
        return _train(trainer, run, recipe, rows, heldout, choice.checkpoint, listener, started)


def preview(keys: Mapping[str, Any]) -> Preview:
    """The rows that a warm-up would train on, and the first of them as text. Nothing is written.

    Raises:
        UserError: if a key or the data cannot be used.
    """
    recipe, config = build({**keys, "output_dir": "unused"})
    tokenizer, _ = load_tokenizer(model_location(recipe.model))
    rows, made = _demonstrations(recipe, _task(recipe), config)
    return Preview(rows=rows, first=made[0], prompt=tokenizer.decode(made[0].rollout.prompt_ids))


def _run_of(
    keys: Mapping[str, Any], resume: Path | None, *, trust: bool
) -> tuple[RunDirectory, dict[str, Any]]:
    """The directory and the keys of a new or a resumed run."""
    if resume is None:
        named = keys.get("output_dir") or Path("runs") / f"{WARM_UP}-{time.strftime('%Y%m%d-%H%M%S')}"
        return RunDirectory(Path(str(named))), dict(keys)
    run = RunDirectory(resume.parent if is_checkpoint(resume) else resume)
    merged = resumed_keys(run, keys)
    if not trust:
        check_run(run, merged, keys)
    if run.summary.is_file():
        raise UserError(f"{run.path} is complete; start a new warm-up with model={run.model}")
    return run, merged


def _task(recipe: WarmUpRecipe) -> Task:
    return with_template_kwargs(get_task(recipe.task), recipe.chat_template_kwargs)


def _demonstrations(recipe: WarmUpRecipe, task: Task, config: Any) -> tuple[Rows, list[Demonstration]]:
    check_ready(task)
    assert task.tool is not None  # the recipe refuses a task without one
    tokenizer, context = load_tokenizer(model_location(recipe.model))
    with open_tools(task, **recipe.tool_limits) as tools:
        assert tools is not None
        demonstrator = Demonstrator(
            tokenizer,
            task,
            task.tool,
            tools,
            recipe.answer_line or answer_line_of(task),
            min(config.max_length, context or config.max_length),
        )
        return make_rows(recipe, task, demonstrator)


def _split(rows: Rows, heldout: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on and rows to measure the loss on; the same for the same rows and seed."""
    order = torch.randperm(len(rows.kept), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(heldout, len(order) // 10)
    return [rows.kept[i] for i in order[count:]], [rows.kept[i] for i in order[:count]]


def _store_rows(run: RunDirectory, rows: Rows, made: list[Demonstration]) -> None:
    write_json_lines(run.path / _ROWS, rows.kept)
    shown = [
        {
            "id": each.problem.id,
            "prompt": each.problem.prompt,
            "response": each.text,
            "answer": each.problem.answer,
        }
        for each in made[:_SHOWN]
    ]
    write_json_lines(run.path / _SAMPLES, shown)
    # The last file, because it says that the others are whole.
    write_json(run.path / _COUNTS, {"dropped": rows.dropped, "first_dropped": rows.first_dropped})


def _stored_rows(run: RunDirectory) -> Rows | None:
    """The rows of a run that is resumed; None if it has not made them yet."""
    path = run.path / _COUNTS
    if not path.is_file():
        return None
    try:
        counts = json.loads(read_text(path))
        dropped, first = counts["dropped"], counts["first_dropped"]
        if not all(isinstance(count, int) for count in dropped.values()) or not isinstance(first, dict):
            raise ValueError("a count is no number")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be used ({error}); start a new run") from None
    return Rows(kept=read_kept(run.path / _ROWS), dropped=dropped, first_dropped=first)


def _trainer(recipe: WarmUpRecipe, config: Any, rows: list[dict[str, Any]]) -> WarmUpTrainer:
    check_loggers(config)
    check_schedule(config)
    model, tokenizer = load_model(model_location(recipe.model))
    try:
        trainer = WarmUpTrainer(
            model, config, rows, recipe, processing_class=tokenizer, peft_config=lora_config(recipe)
        )
        check_optimizer(trainer)
    except (ValueError, ImportError, OSError) as error:  # settings that TRL or transformers refuse
        with suppress(OSError):
            Path(config.output_dir).rmdir()
        raise UserError(" ".join(str(error).split())) from None
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _check_checkpoint(trainer: WarmUpTrainer, checkpoint: Path) -> None:
    try:
        compare(sealed_identity(checkpoint), trainer.identity())
    except Unusable as reason:
        raise UserError(f"{checkpoint} cannot be resumed: {reason}; start a new run") from None


class _Recorder(TrainerCallback):  # type: ignore[misc]
    """Writes one line of metrics per optimizer step."""

    def __init__(
        self,
        trainer: WarmUpTrainer,
        run: RunDirectory,
        heldout: list[dict[str, Any]],
        every: int,
        listener: Listener,
        started: float,
        before: float,
    ) -> None:
        self._trainer, self._run, self._heldout, self._every = trainer, run, heldout, every
        self._listener, self._started, self._before = listener, started, before
        self._cpu = time.process_time()

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        # Every process takes part in what all of them compute; the main one writes.
        counted = torch.tensor(self._trainer.tokens, device=args.device)
        tokens = int(self._trainer.accelerator.reduce(counted, reduction="sum"))
        record = {
            "batch": state.global_step,
            "step": state.global_step,
            "epoch": state.epoch,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": logs.get("learning_rate"),
            "tokens": tokens,
            "cpu_s": round(time.process_time() - self._cpu, 3),
        }
        self._trainer.tokens = 0
        last = state.global_step == state.max_steps
        if self._heldout and (last or (self._every and state.global_step % self._every == 0)):
            record["heldout_loss"] = self._trainer.mean_loss(self._heldout)
        self._cpu = time.process_time()
        record["seconds"] = round(self.seconds, 3)
        if state.is_world_process_zero:
            self._run.append(record)
            self._listener.recorded(record)

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run, interrupted parts included."""
        return self._before + time.perf_counter() - self._started


def _train(
    trainer: WarmUpTrainer,
    run: RunDirectory,
    recipe: WarmUpRecipe,
    rows: Rows,
    heldout: list[dict[str, Any]],
    checkpoint: Path | None,
    listener: Listener,
    started: float,
) -> Outcome:
    """Measure, train and save."""
    step = step_of(checkpoint) if checkpoint else 0
    logs = run.read_logs()
    processes, index = trainer.args.world_size, trainer.args.process_index

    def records_so_far() -> list[dict[str, Any]]:
        run.check_figures(step, first=())
        return run.rewind(step, 1)

    records = on_main(records_so_far, processes, index)
    recorder = _Recorder(trainer, run, heldout, recipe.eval_every, listener, started, _seconds(records))
    if not records:
        first: dict[str, Any] = {"batch": 0, "step": 0}
        if heldout:
            listener.stage("measuring the held-out loss before training")
            first["heldout_loss"] = trainer.mean_loss(heldout)
        records = [{**first, "seconds": round(recorder.seconds, 3)}]
        if index == 0:
            run.append(records[0])
    stop = StopCleanly(lambda asked: any_of(asked, trainer.accelerator))
    trainer.add_callback(recorder)
    trainer.add_callback(stop)
    steps = _steps(trainer)
    listener.started(run.path, steps, step, trainer.model.num_parameters())
    for record in records:
        listener.recorded(record)
    with stop.listening():
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except UnusableFile:
            if index == 0:
                run.restore_logs(logs)  # nothing was trained, so nothing may be missing
            raise
        if trainer.state.global_step < trainer.state.max_steps:
            return Outcome(run=run, finished=False, summary=None)
        listener.stage("saving the model")
        facts = adapter_facts(trainer, run, recipe)
        save(trainer, run)
        if index != 0:
            return Outcome(run=run, finished=True, summary=None)
        measured = [each["heldout_loss"] for each in run.records() if "heldout_loss" in each]
        summary = {
            "task": recipe.task,
            "model": recipe.model,
            "seed": trainer.args.seed,
            "steps": trainer.state.global_step,
            "rows": len(rows.kept),
            "rows_heldout": len(heldout),
            "dropped": rows.dropped,
            "first_dropped": rows.first_dropped,
            "tokens": sum(each.get("tokens", 0) for each in run.records()),
            "before": {"loss": measured[0]} if measured else {},
            "after": {"loss": measured[-1]} if measured else {},
            "wall_clock_s": round(recorder.seconds, 3),
            **facts,
        }
        run.write_summary(summary)
    return Outcome(run=run, finished=True, summary=summary)


def _seconds(records: list[dict[str, Any]]) -> float:
    """The time that the parts of a run before an interrupt took."""
    seconds = records[-1].get("seconds") if records else 0.0
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _steps(trainer: WarmUpTrainer) -> int:
    """How many optimizer steps the run takes."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    loader = len(trainer.get_train_dataloader())
    per_epoch = -(-loader // args.gradient_accumulation_steps)
    return int(-(-args.num_train_epochs * per_epoch // 1))
