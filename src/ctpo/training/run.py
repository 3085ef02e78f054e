"""One training run, from checked settings to a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, ProgressCallback

from ctpo.errors import UserError
from ctpo.evaluation import smollm2
from ctpo.evaluation.model import HELDOUT_SEED
from ctpo.rollout.tools import ToolRunner, open_tools
from ctpo.tasks import Problem, Task, get_task, reward_function
from ctpo.tasks.arithmetic import model_path
from ctpo.tasks.jsonl import read_problems
from ctpo.training.callbacks import RunRecorder, StopCleanly, heldout_metrics
from ctpo.training.config import CTPOConfig
from ctpo.training.environment import describe_environment
from ctpo.training.events import Listener, RunPlan, Silent
from ctpo.training.heldout import HeldOut
from ctpo.training.recipe import EMBEDDED_MODEL, Recipe, merge
from ctpo.training.rollout import make_rollout_func
from ctpo.training.rundir import RunDirectory, default_run_path
from ctpo.training.settings import build, resolved
from ctpo.training.trainer import CTPOTrainer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    run: RunDirectory
    finished: bool
    """False when it was interrupted; a checkpoint is then saved."""
    summary: dict[str, Any] | None
    """What `summary.json` holds, once finished; on the main process only."""


def train(
    keys: Mapping[str, Any], *, listener: Listener | None = None, resume: Path | None = None
) -> Outcome:
    """Train as a recipe's keys say; with `resume`, continue that run, the keys overriding its own.

    Raises:
        UserError: for anything wrong with the keys, the files or the output directory; before a model loads,
            except where the model itself or the sandbox is what is wrong.
    """
    run, keys, checkpoint = _prepare(keys, resume)
    recipe, config = build(keys)
    is_main = config.process_index == 0
    listener = listener if listener is not None and is_main else Silent()
    task = get_task(recipe.task)
    problems = _train_problems(recipe, task, config)
    _settle_length(config, len(problems))
    heldout = _heldout_problems(recipe, task)
    if checkpoint is not None:
        _check_unfinished(run, config, checkpoint)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    listener.stage("starting the sandbox")
    with _open_tools(recipe, task) as tools:
        listener.stage("loading the model")
        rollout_func = make_rollout_func(tools, batch_size=recipe.rollout_batch_size, task=task)
        trainer = _trainer(recipe, config, task, problems, rollout_func)
        if is_main:  # only now: what cannot start leaves no run behind
            run.open(resolved(recipe, config, keys), describe_environment())
        held_out = HeldOut(trainer, task, heldout, tools, run, recipe)
        return _run(trainer, held_out, run, recipe, listener, checkpoint)


def _prepare(
    keys: Mapping[str, Any], resume: Path | None
) -> tuple[RunDirectory, dict[str, Any], Path | None]:
    """Where the run lives, all of its keys, and the checkpoint to start from."""
    if resume is None:
        named = keys.get("output_dir")
        run = RunDirectory(Path(named) if named else default_run_path(keys))
        run.check_free()
        return run, {**keys, "output_dir": str(run.path)}, None
    run = RunDirectory(resume)
    merged = merge(run.read_recipe(), {**keys, "output_dir": str(resume)})
    checkpoint = run.last_checkpoint()
    if checkpoint is None:
        raise UserError(
            f"{resume} has no checkpoint to resume from; start the run afresh in another directory"
        )
    return run, merged, checkpoint


def _check_unfinished(run: RunDirectory, config: CTPOConfig, checkpoint: Path) -> None:
    if _step_of(checkpoint) >= config.max_steps:
        raise UserError(
            f"{run.path} is complete ({_step_of(checkpoint)} updates); to train it further, give rollout_batches"
        )


def _train_problems(recipe: Recipe, task: Task, config: CTPOConfig) -> list[Problem]:
    if recipe.dataset is None:
        problems = task.problems("train", recipe.train_problems, config.seed)
    else:
        problems = read_problems(recipe.dataset)
    needed = config.generation_batch_size // config.num_generations
    if len(problems) < needed:
        raise UserError(
            f"{len(problems)} training problems do not fill one rollout batch of {needed} prompts "
            f"(generation_batch_size={config.generation_batch_size} / num_generations={config.num_generations}); "
            "give more problems or lower generation_batch_size"
        )
    return problems


def _settle_length(config: CTPOConfig, problems: int) -> None:
    """Express the run's length in optimizer steps, a whole number of rollout batches."""
    updates = config.updates_per_rollout_batch
    if config.max_steps <= 0:
        batches_per_epoch = problems * config.num_generations // config.generation_batch_size
        config.max_steps = int(config.num_train_epochs * batches_per_epoch) * updates
    if config.max_steps % updates or config.max_steps < updates:
        nearest = max(1, round(config.max_steps / updates)) * updates
        raise UserError(
            f"max_steps={config.max_steps} is not a whole number of rollout batches of {updates} updates; "
            f"use {nearest}"
        )


def _heldout_problems(recipe: Recipe, task: Task) -> list[Problem]:
    if recipe.eval_dataset is not None:
        return read_problems(recipe.eval_dataset)[: recipe.eval_problems]
    return task.problems("test", recipe.eval_problems, HELDOUT_SEED)


def _open_tools(recipe: Recipe, task: Task) -> AbstractContextManager[ToolRunner | None]:
    return open_tools(
        task,
        timeout_s=recipe.tool_timeout_s,
        memory_mb=recipe.tool_memory_mb,
        unsafe_no_isolation=recipe.unsafe_no_isolation,
    )


def _trainer(
    recipe: Recipe, config: CTPOConfig, task: Task, problems: list[Problem], rollout_func: Any
) -> CTPOTrainer:
    location = str(model_path()) if recipe.model == EMBEDDED_MODEL else recipe.model
    if recipe.model == smollm2.NAME:
        location = str(smollm2.smollm2_path())
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, padding_side="left")
        trainer = CTPOTrainer(
            model=location,
            reward_funcs=reward_function(task),
            args=config,
            train_dataset=Dataset.from_list([vars(problem) for problem in problems]),
            processing_class=tokenizer,
            rollout_func=rollout_func,
        )
    except OSError as error:
        raise UserError(f"model={recipe.model} cannot be loaded: {str(error).splitlines()[0]}") from None
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _run(
    trainer: CTPOTrainer,
    held_out: HeldOut,
    run: RunDirectory,
    recipe: Recipe,
    listener: Listener,
    checkpoint: Path | None,
) -> Outcome:
    config: CTPOConfig = trainer.args
    updates = config.updates_per_rollout_batch
    is_main = config.process_index == 0
    start = _step_of(checkpoint) if checkpoint else 0
    records = run.rewind(start) if checkpoint and is_main else []
    if not records and is_main:
        listener.stage("evaluating before training")
        records = [{"batch": 0, "step": 0, "seconds": 0.0, **heldout_metrics(held_out(0))}]
        run.append(records[0])
    listener.started(_plan(trainer, run, recipe, start // updates))
    for record in records:
        listener.recorded(record)
    recorder = RunRecorder(
        run,
        lambda: trainer.rollout_account,
        held_out,
        listener,
        updates_per_batch=updates,
        eval_every=recipe.eval_every,
        last_batch=config.max_steps // updates,
        seconds_before=records[-1]["seconds"] if records else 0.0,
    )
    stop = StopCleanly()
    trainer.add_callback(recorder)
    trainer.add_callback(stop)
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < config.max_steps:
        return Outcome(run=run, finished=False, summary=None)
    listener.stage("saving the model")
    trainer.save_model(str(run.model))
    if not is_main:
        return Outcome(run=run, finished=True, summary=None)
    summary = _summary(config, run, trainer.state.global_step)
    run.write_summary(summary)
    return Outcome(run=run, finished=True, summary=summary)


def _plan(trainer: CTPOTrainer, run: RunDirectory, recipe: Recipe, start_batch: int) -> RunPlan:
    config: CTPOConfig = trainer.args
    return RunPlan(
        output=run.path,
        task=recipe.task,
        model=recipe.model,
        objective=config.objective,
        seed=config.seed,
        rollout_batches=config.max_steps // config.updates_per_rollout_batch,
        updates_per_batch=config.updates_per_rollout_batch,
        responses_per_batch=config.generation_batch_size,
        parameters=trainer.model.num_parameters(),
        start_batch=start_batch,
    )


def _summary(config: CTPOConfig, run: RunDirectory, steps: int) -> dict[str, Any]:
    records = run.records()
    evaluated = [record for record in records if "heldout_pass@1" in record]
    return {
        "objective": config.objective,
        "objective_kwargs": config.objective_kwargs,
        "seed": config.seed,
        "steps": steps,
        "rollout_batches": steps // config.updates_per_rollout_batch,
        "before": _heldout(evaluated[0]),
        "after": _heldout(evaluated[-1]),
        "wall_clock_s": records[-1]["seconds"],
        "generation_s": round(sum(record.get("generation_s", 0.0) for record in records), 3),
        "tool_s": round(sum(record.get("tool_s", 0.0) for record in records), 3),
        "training_s": round(sum(record.get("training_s", 0.0) for record in records), 3),
        "model": run.model.name,
    }


def _heldout(record: dict[str, Any]) -> dict[str, Any]:
    prefix = "heldout_"
    return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
