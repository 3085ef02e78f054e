"""What a run starts from: its directory, its keys, its problems, its length, and the checkpoint to continue from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.evaluation.model import HELDOUT_SEED
from ctpo.runs.checkpoints import choose, is_checkpoint, step_of
from ctpo.runs.directory import RunDirectory, default_run_path
from ctpo.tasks import Problem, Task
from ctpo.tasks.columns import Columns, read_problems
from ctpo.tasks.sources import DatasetSource
from ctpo.tasks.task import ProblemSource, RatedSource
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.recipe import DEFAULT_TRAIN_PROBLEMS, Recipe, merge
from ctpo.training.config.trust import check_run
from ctpo.training.sampling.data import check_difficulties, check_enough

MAY_CHANGE: Final = {
    *("rollout_batches", "max_steps", "num_train_epochs", "eval_every", "eval_stderr", "transcripts"),
    *("threads", "save_steps", "save_total_limit", "rollout_batch_size", "tool_timeout_s", "tool_memory_mb"),
    *("unsafe_no_isolation", "max_nonfinite_updates", "shared", "ddp_timeout", "ray_address"),
}
"""Keys that may change when a run is resumed: its length, its records, and limits that depend on the machine."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A run's directory, its keys, and the checkpoint that it continues from."""

    run: RunDirectory
    keys: dict[str, Any]
    resumes: bool
    named: Path | None = None
    """The checkpoint that the user asked for."""
    checkpoint: Path | None = None
    """The checkpoint to continue from; None to start at the beginning."""
    notices: tuple[str, ...] = ()
    """Decisions about checkpoints that the user should know of."""

    @property
    def step(self) -> int:
        """The number of optimizer steps already done."""
        return step_of(self.checkpoint) if self.checkpoint else 0


def prepare(keys: Mapping[str, Any], resume: Path | None, *, trust: bool = False) -> Start:
    """The directory and the keys of a run, without its checkpoint yet.

    Args:
        keys: of a new run's recipe; with `resume`, keys that change those of the run.
        resume: the directory of a run to continue, or a checkpoint in one.
        trust: obey what a run's directory asks for beyond data (`ctpo.training.config.trust`).

    Raises:
        UserError: if `resume` is not a run, if a key would change what the run computes, or if the directory asks for
            more than data may.
    """
    if resume is None:
        named = keys.get("output_dir")
        run = RunDirectory(Path(str(named)) if named else default_run_path(keys))
        return Start(run=run, keys={**keys, "output_dir": str(run.path)}, resumes=False)
    checkpoint = resume if is_checkpoint(resume) else None
    run = RunDirectory(resume if checkpoint is None else resume.parent)
    recipe = run.read_recipe()
    merged = {**merge(recipe, keys), "output_dir": str(run.path)}
    for name, value in keys.items():
        if name not in MAY_CHANGE and recipe.get(name) != merge(recipe, {name: value})[name]:
            raise UserError(
                f"{name}={value} cannot change when {run.path} is resumed (it is {recipe.get(name)}); start a new run"
            )
    if not trust:
        check_run(run, merged, keys)
    return Start(run=run, keys=merged, resumes=True, named=checkpoint)


def settle(start: Start, identity: Mapping[str, Any]) -> Start:
    """The start of a run: a new directory is checked to be free, and a resumed run gets its checkpoint.

    A resumed run without a checkpoint starts again. Only the main process calls this; the others get its result.

    Raises:
        UserError: if the directory is in use, or no checkpoint can be used.
    """
    if not start.resumes:
        start.run.check_free()
        return start
    choice = choose(start.run.path, identity, start.named)
    return replace(start, checkpoint=choice.checkpoint, notices=tuple(choice.notices(start.run.path)))


def check_unfinished(start: Start, config: CTPOConfig) -> None:
    """Refuse to resume a run that has nothing left to do.

    Raises:
        UserError: if all of its updates are done and its summary is written.
    """
    if start.checkpoint is None or not start.run.summary.is_file():
        return
    if start.step >= config.max_steps:
        raise UserError(
            f"{start.run.path} is complete ({start.step} updates, and {config.max_steps} were asked for); to train it "
            "further, give a larger rollout_batches"
        )


def train_problems(recipe: Recipe, task: Task, config: CTPOConfig) -> list[Problem]:
    """The training problems, from the recipe's dataset or from the task.

    Raises:
        UserError: if the dataset cannot be read, has too few problems for one rollout batch, or has difficulties that
            the curriculum cannot use.
    """
    problems = all_train_problems(recipe, task, config)
    check_enough(problems, config)
    check_difficulties(problems, config, (recipe.columns or {}).get("difficulty"))
    return problems


def all_train_problems(recipe: Recipe, task: Task, config: CTPOConfig) -> list[Problem]:
    """The training problems, however few.

    Raises:
        UserError: if the dataset cannot be read.
    """
    if recipe.dataset is None:
        source = _source(recipe, task)
        return list(source("train", recipe.train_problems or DEFAULT_TRAIN_PROBLEMS, config.seed))
    return _read(recipe.dataset, recipe, task)


def settle_length(config: CTPOConfig, problems: int) -> None:
    """Set `max_steps` of the config, the run's length in optimizer steps, from the number of epochs if it is not set.

    Raises:
        UserError: if `max_steps` is not a whole number of rollout batches.
    """
    updates = config.updates_per_rollout_batch
    if config.max_steps <= 0:
        batches_per_epoch = problems * config.num_generations // config.generation_batch_size
        config.max_steps = int(config.num_train_epochs * batches_per_epoch) * updates
    if config.max_steps % updates or config.max_steps < updates:
        nearest = max(1, round(config.max_steps / updates)) * updates
        raise UserError(
            f"max_steps={config.max_steps} is not a whole number of rollout batches of {updates} updates; use {nearest}"
        )


def heldout_problems(recipe: Recipe, task: Task) -> list[Problem]:
    """The held-out problems, the same in every evaluation of the run."""
    if recipe.eval_dataset is not None:
        return _read(recipe.eval_dataset, recipe, task)[: recipe.eval_problems]
    return _source(recipe, task)("test", recipe.eval_problems, HELDOUT_SEED)


def _read(path: Path, recipe: Recipe, task: Task) -> list[Problem]:
    """The problems of a file, whose answers have the form of the task's own."""
    own = task.problems
    answer = own.answer if isinstance(own, DatasetSource) else str
    return read_problems(path, Columns(**(recipe.columns or {})), answer)


def _source(recipe: Recipe, task: Task) -> ProblemSource:
    """The task's own problems, read with the column names of the recipe."""
    own = task.problems
    if not recipe.columns:
        return own
    if isinstance(own, RatedSource) and recipe.dataset is None and set(recipe.columns) == {"difficulty"}:
        return own.rated_by(recipe.columns["difficulty"])
    if not isinstance(own, DatasetSource):
        if recipe.dataset is not None:
            return own  # the columns are those of the dataset
        raise UserError(
            f"columns={recipe.columns} has no effect: task {task.name!r} makes its problems itself; give dataset=FILE"
        )
    return replace(own, columns=replace(own.columns, **recipe.columns))
