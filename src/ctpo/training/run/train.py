"""One training run, from checked settings to a saved model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback
from transformers.utils import is_liger_kernel_available

from ctpo.errors import UserError
from ctpo.evaluation.heldout import gain, heldout_metrics
from ctpo.evaluation.model import load_model, load_tokenizer
from ctpo.rollout.tools import ToolRunner, open_tools
from ctpo.runs.checkpoints import Unusable, compare, read_clocks, sealed_identity, set_aside_newer
from ctpo.runs.directory import RunDirectory
from ctpo.runs.identity import deciding_settings
from ctpo.tasks import Problem, Task, get_task
from ctpo.tasks.arithmetic import model_location
from ctpo.tasks.repeats import overlap
from ctpo.tasks.task import as_conversation, check_ready, with_template_kwargs
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.launch import check_joined
from ctpo.training.config.recipe import Recipe
from ctpo.training.config.settings import build, resolved
from ctpo.training.processes import any_of, on_main, peers_in_one_line, unused_sharding
from ctpo.training.records.environment import describe_environment
from ctpo.training.records.events import Listener, RunPlan, Silent
from ctpo.training.records.recorder import RunClock, RunRecorder, time_before
from ctpo.training.records.summary import summarise
from ctpo.training.run.early import check_loggers, check_optimizer, check_schedule
from ctpo.training.run.heldout import HeldOut
from ctpo.training.run.lora import adapter_facts, lora_config, save
from ctpo.training.run.shared import share_answers
from ctpo.training.run.start import (
    MAY_CHANGE,
    Start,
    check_unfinished,
    heldout_problems,
    prepare,
    settle,
    settle_length,
    train_problems,
)
from ctpo.training.run.stop import StopCleanly
from ctpo.training.sampling.data import check_enough, dataset_rows
from ctpo.training.sampling.masking import check_void_turns
from ctpo.training.sampling.prompts import leave_out_long
from ctpo.training.sampling.reward import Verdicts, reward_functions
from ctpo.training.sampling.rollout_func import make_rollout_func
from ctpo.training.step.saving import full_disk_in_one_line
from ctpo.training.step.state import UnusableFile, check_trainer_state
from ctpo.training.step.trainer import CTPOTrainer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    run: RunDirectory
    finished: bool
    """False if it was interrupted; a checkpoint is saved then."""
    summary: dict[str, Any] | None
    """The content of `summary.json`; None if the run is not finished, or in a process that is not the main one."""


def train(
    keys: Mapping[str, Any],
    *,
    listener: Listener | None = None,
    resume: Path | None = None,
    started: float | None = None,
    trust: bool = False,
) -> Outcome:
    """Train as a recipe describes, and save the model and the records.

    Args:
        keys: of the recipe (`ctpo train --help`). With `resume`, keys that change those of the run.
        listener: is notified as the run goes on, in the main process.
        resume: the directory of a run to continue, or one of its checkpoints.
        started: the reading of `time.perf_counter` from which the run's time counts. None counts from this call.
        trust: with `resume`, run the code and obey the unsafe settings that the run's directory names.

    Raises:
        UserError: if a key, a file or the output directory is wrong. This is found before a model is loaded, except
            if the model itself or the sandbox is wrong.
    """
    started = time.perf_counter() if started is None else started
    prepared = prepare(keys, resume, trust=trust)
    recipe, config = build(prepared.keys)
    check_joined(config.world_size)
    listener = listener if listener is not None and config.process_index == 0 else Silent()
    with peers_in_one_line(config):
        return _train(prepared, recipe, config, listener, started)


def _train(
    prepared: Start, recipe: Recipe, config: CTPOConfig, listener: Listener, started: float
) -> Outcome:
    """Prepare the run and the model, train, and save. Every process must call it."""
    processes, index = config.world_size, config.process_index
    task = with_template_kwargs(get_task(recipe.task, recipe.tools or ()), config.chat_template_kwargs)
    check_void_turns(task, recipe.mask_void_turns)
    check_ready(task)
    everything = train_problems(recipe, task, config)
    heldout = heldout_problems(recipe, task)
    task = as_conversation(task, [*everything, *heldout])
    tokenizer, context = load_tokenizer(_model(recipe), **_loading(config, "revision", "trust_remote_code"))
    problems = leave_out_long(everything, recipe, config, task, tokenizer, context)
    check_enough(problems, config)
    settle_length(config, len(problems))
    written = resolved(prepared.keys)
    identity = {"world_size": processes, "recipe": deciding_settings(written, MAY_CHANGE)}
    start = on_main(lambda: settle(prepared, identity), processes, index)
    config.output_dir = str(start.run.path)  # the main process named it, by the time of day
    check_unfinished(start, config)
    for notice in start.notices:
        listener.notice(notice)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    trained_on = overlap(problems, heldout, by_answer=task.environment is not None)
    if trained_on:
        listener.notice(
            f"{len(trained_on)} of {len(heldout)} held-out problems are also training problems, the first is "
            f"{trained_on[0].id}; the held-out accuracy partly measures what was trained on"
        )
    listener.stage("starting the sandbox")
    with full_disk_in_one_line(start.run.path), open_tools(task, **recipe.tool_limits) as tools:
        share_answers(tools, recipe)
        listener.stage("loading the model")
        trainer = _trainer(recipe, config, task, problems, tools, _location(recipe, config, start))
        trainer.run_identity = identity
        unused = unused_sharding(trainer.accelerator, config.fsdp, config.deepspeed)
        if unused is not None:
            listener.notice(unused)
        _check_checkpoint(trainer, start)
        if index == 0:  # not earlier, so that a run that cannot start leaves no directory behind
            start.run.open(written, describe_environment(processes), new=not start.resumes)
            if start.resumes:
                set_aside_newer(start.run.path, start.checkpoint)
        held_out = HeldOut(trainer, task, heldout, tools, start.run, recipe, trained_on=len(trained_on))
        left_out = len(everything) - len(problems)
        return _run(trainer, held_out, start, recipe, listener, left_out, started)


def _run(
    trainer: CTPOTrainer,
    held_out: HeldOut,
    start: Start,
    recipe: Recipe,
    listener: Listener,
    left_out: int,
    started: float,
) -> Outcome:
    """Evaluate, train and save.

    Args:
        left_out: the number of training prompts that are too long.
        started: the reading of `time.perf_counter` from which the run's time counts.
    """
    config: CTPOConfig = trainer.args
    run, updates = start.run, config.updates_per_rollout_batch
    is_main = config.process_index == 0

    before = run.read_logs()

    def records_so_far() -> list[dict[str, Any]]:
        run.check_figures(start.step)
        return run.rewind(start.step, updates)

    records = on_main(records_so_far, config.world_size, config.process_index)
    clock = RunClock(started, time_before(start.checkpoint, records))
    if not records:
        listener.stage("evaluating before training")
        figures = held_out.before()
        records = [{"batch": 0, "step": 0, "seconds": round(clock.seconds, 3), **figures}]
        if is_main:
            run.append(records[0])
    listener.started(_plan(trainer, run, recipe, start.step // updates, left_out))
    for record in records:
        listener.recorded(record)
    last = config.max_steps // updates

    def evaluate(batch: int) -> dict[str, float] | None:
        if not held_out.due(batch, last):
            return None
        evaluation = held_out(batch, stderr=0.0 if batch == last else recipe.eval_stderr)
        trainer.model.train()  # the trainer's log of this step is one of training
        summary = evaluation.summary().items()
        trainer.tell_loggers({f"eval_{name.replace('@', '_at_')}": value for name, value in summary})
        return heldout_metrics(evaluation) | (gain(evaluation, records[0]) if batch == last else {})

    recorder = RunRecorder(
        trainer,
        run,
        clock,
        listener,
        updates_per_batch=updates,
        samples=recipe.transcripts,
        evaluate=evaluate,
        early_end_is_final=False,
    )
    trainer.recorder = recorder
    stop = StopCleanly(lambda asked: any_of(asked, trainer.accelerator))
    trainer.add_callback(recorder)
    trainer.add_callback(stop)
    with stop.listening():  # also while saving: an interrupt then waits until everything is written
        if start.step < config.max_steps:
            try:
                trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
            except UnusableFile:
                if is_main:
                    run.restore_logs(before)  # nothing was trained, so nothing may be missing
                raise
            if trainer.state.global_step < config.max_steps:
                return Outcome(run=run, finished=False, summary=None)
        else:  # only the model is still to be saved
            assert start.checkpoint is not None
            if recipe.use_peft:
                trainer._load_from_checkpoint(str(start.checkpoint))
            if trainer.critic is not None:
                trainer.critic.load(start.checkpoint)
        listener.stage("saving the model")
        facts = adapter_facts(trainer, run, recipe)
        save(trainer, run)
        trainer.create_model_card(run.path.name, folder=run.model)
        if not is_main:
            return Outcome(run=run, finished=True, summary=None)
        if trainer.critic is not None:
            trainer.critic.export(run.critic)
        summary = summarise(
            config,
            run,
            steps=config.max_steps,
            seconds=clock.seconds,
            model=run.model.name,
            prompts_left_out=left_out,
            heldout_in_training=held_out.trained_on,
            **facts,
        )
        run.write_summary(summary)
    return Outcome(run=run, finished=True, summary=summary)


def _trainer(
    recipe: Recipe,
    config: CTPOConfig,
    task: Task,
    problems: list[Problem],
    tools: ToolRunner | None,
    location: str,
) -> CTPOTrainer:
    """The trainer of a run, with the model loaded from this location."""
    # Weights are float32, as in TRL, unless model_init_kwargs sets another dtype.
    model, tokenizer = load_model(location, **_loading(config))

    def account_for(verdicts: Verdicts) -> None:
        trainer.rollout_account.verdicts = dict(verdicts)

    check_loggers(config)
    check_schedule(config)
    try:
        if config.use_liger_kernel and not is_liger_kernel_available():
            raise ImportError(
                "use_liger_kernel needs the package liger-kernel; install it or leave the key out"
            )
        trainer = CTPOTrainer(
            model=model,
            reward_funcs=reward_functions(task, recipe, config, account_for),
            args=config,
            train_dataset=Dataset.from_list(dataset_rows(problems)),
            processing_class=tokenizer,
            peft_config=lora_config(recipe),
            rollout_func=make_rollout_func(
                tools,
                batch_size=recipe.rollout_batch_size,
                task=task,
                void_turns=recipe.mask_void_turns,
            ),
        )
        check_optimizer(trainer)
    except (ValueError, ImportError, OSError) as error:  # settings that TRL or transformers refuse
        with suppress(OSError):  # TRL makes the directory; a run that cannot start leaves no empty one behind
            Path(config.output_dir).rmdir()
        raise UserError(" ".join(str(error).split())) from None
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _check_checkpoint(trainer: CTPOTrainer, start: Start) -> None:
    """Refuse a checkpoint of a model with other shapes or of another step; transformers would not say what is wrong."""
    if start.checkpoint is None:
        return
    check_trainer_state(start.checkpoint)
    read_clocks(start.checkpoint)
    try:
        compare(sealed_identity(start.checkpoint), {"model": trainer.identity()["model"]})
    except Unusable as reason:
        raise UserError(f"{start.checkpoint} cannot be resumed: {reason}; start a new run") from None


def _location(recipe: Recipe, config: CTPOConfig, start: Start) -> str:
    """The directory or hub id of the weights. A run that only has to save its model loads its last checkpoint."""
    if start.checkpoint is not None and start.step >= config.max_steps and not recipe.use_peft:
        return str(start.checkpoint)
    return _model(recipe)  # a checkpoint holds the adapter alone


def _model(recipe: Recipe) -> str:
    return model_location(recipe.model)


def _loading(config: CTPOConfig, *names: str) -> dict[str, Any]:
    """The entries of `model_init_kwargs` with these names, or all of them."""
    options = config.model_init_kwargs or {}
    assert isinstance(options, dict)  # TRL parses a JSON string in its own __post_init__
    return {name: options[name] for name in names or options if name in options}


def _plan(
    trainer: CTPOTrainer, run: RunDirectory, recipe: Recipe, start_batch: int, left_out: int
) -> RunPlan:
    config: CTPOConfig = trainer.args
    return RunPlan(
        output=run.path,
        task=recipe.task,
        model=recipe.model,
        objective=str(config.objective),
        seed=config.seed,
        rollout_batches=config.max_steps // config.updates_per_rollout_batch,
        updates_per_batch=config.updates_per_rollout_batch,
        responses_per_batch=config.generation_batch_size,
        parameters=trainer.model.num_parameters(),
        start_batch=start_batch,
        left_out=left_out,
    )
