"""The rows that a warm-up trains on: read, turned into demonstrations, counted, stored with the run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.runs.json_lines import read_json_lines
from ctpo.tasks import Problem, Task
from ctpo.tasks.columns import Columns, column_of
from ctpo.tasks.math import reference_answer
from ctpo.tasks.prompts import asked, prompt_key
from ctpo.tasks.rows import Row, read_rows
from ctpo.tasks.sources import DatasetSource
from ctpo.tasks.task import RIGHT, judgements
from ctpo.training.config.warm_up import WarmUpRecipe
from ctpo.training.warm_up.demonstrations import Demonstration, Demonstrator, Worked
from ctpo.training.warm_up.solutions import steps_of

SOLUTIONS: Final = ("solution", "worked_solution", "rationale", "answer")
"""The usual names of the column that holds worked solutions."""
UNUSABLE: Final = "it lacks a problem, a solution or an answer"
REPEATED: Final = "it is there twice"
NO_PROGRAM: Final = "it has no calculation that a program can do"
NO_ANSWER: Final = "it states no answer, and there is no answer column"
DISAGREES: Final = "it states another answer than its answer column"
_MOST_BYTES: Final = 2**32


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What became of the solutions."""

    kept: Sequence[dict[str, Any]]
    """`id`, `prompt_ids`, `completion_ids` and `response_mask` of each row."""
    dropped: dict[str, int]
    """How many solutions were left out, by reason."""
    first_dropped: dict[str, str]
    """The first of them, by reason."""

    @property
    def digest(self) -> str:
        """SHA-256 of the rows, by which a resumed run knows that they are the same."""
        return hashlib.sha256(json.dumps(list(self.kept), sort_keys=True).encode()).hexdigest()


def read_kept(path: Path) -> list[dict[str, Any]]:
    """The rows of a run, as they were stored.

    Raises:
        UserError: if they are missing or damaged.
    """
    try:
        lines = read_json_lines(path, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); start a new run") from None
    rows = [line.record for line in lines if line.complete and line.record is not None]
    if len(rows) != len(lines) or not all(map(_is_row, rows)):
        raise UserError(f"{path} is damaged; start a new run")
    return rows


def _is_row(row: dict[str, Any]) -> bool:
    ids, mask = row.get("completion_ids"), row.get("response_mask")
    lists = [row.get("prompt_ids"), ids, mask]
    whole = all(isinstance(each, list) and each and all(type(i) is int for i in each) for each in lists)
    return whole and len(ids or ()) == len(mask or ()) and any(mask or ())


def make_rows(
    recipe: WarmUpRecipe, task: Task, demonstrator: Demonstrator
) -> tuple[Rows, list[Demonstration]]:
    """The rows of a recipe's solutions, and the demonstrations that they come from.

    Raises:
        UserError: if nothing is left.
    """
    dropped: Counter[str] = Counter()
    first: dict[str, str] = {}

    def drop(why: str, which: str) -> None:
        dropped[why] += 1
        first.setdefault(why, which)

    worked: list[Worked] = []
    seen: set[tuple[str, str]] = set()
    source, read = _solutions(recipe, task)
    for row in read:
        try:
            problem, solution, own = _problem(row, recipe, task)
        except UserError as error:
            drop(UNUSABLE, str(error))
            continue
        if len(worked) == recipe.train_rows:
            break
        key = (prompt_key(problem.prompt), solution)
        steps = steps_of(solution, asked(problem.prompt))
        if key in seen:
            drop(REPEATED, problem.id)
        elif own and _states_nothing(task, solution):
            drop(NO_ANSWER, problem.id)
        elif _disagrees(task, solution, problem):
            drop(DISAGREES, problem.id)
        elif not steps:
            drop(NO_PROGRAM, problem.id)
        else:
            seen.add(key)
            worked.append(Worked(problem=problem, steps=steps))
    made = demonstrator.demonstrate(worked)
    for each in made:
        if each.refused is not None:
            drop(each.refused, each.problem.id)
    good = [each for each in made if each.refused is None]
    if not good:
        reasons = "; ".join(f"{count} {why}, first {first[why]}" for why, count in dropped.most_common())
        raise UserError(
            f"no solution of {source} is left to train on ({reasons or 'it has no rows'}); give others"
        )
    kept = [
        {
            "id": each.problem.id,
            "prompt_ids": each.rollout.prompt_ids,
            "completion_ids": each.rollout.completion_ids,
            "response_mask": each.rollout.response_mask,
        }
        for each in good
    ]
    return Rows(kept=kept, dropped=dict(dropped.most_common()), first_dropped=first), good


def _states_nothing(task: Task, solution: str) -> bool:
    """Whether a solution that is its own answer column says nowhere what the answer is."""
    if reference_answer(solution) != solution.strip():
        return False
    return task.extract is None or task.extract(solution) is None


def _disagrees(task: Task, solution: str, problem: Problem) -> bool:
    """Whether the solution states an answer, and that is not the reference answer."""
    if task.extract is None or task.extract(solution) is None:
        return False
    return judgements(task, [solution], [problem.answer], [problem.id])[0].verdict != RIGHT


def _solutions(recipe: WarmUpRecipe, task: Task) -> tuple[str, list[Row]]:
    """The rows with solutions, and where they come from."""
    if recipe.dataset is not None:
        return f"dataset {recipe.dataset}", read_rows(recipe.dataset)
    if not isinstance(task.problems, DatasetSource):
        raise UserError(
            f"task {task.name!r} makes its problems itself and has no worked solutions; give dataset=FILE"
        )
    return f"task {task.name!r}", task.problems.rows("train")


def _problem(row: Row, recipe: WarmUpRecipe, task: Task) -> tuple[Problem, str, bool]:
    """The problem of a row, its worked solution, and whether one column holds solution and answer."""
    own = task.problems if isinstance(task.problems, DatasetSource) else None
    columns = own.columns if own is not None and recipe.dataset is None else Columns()
    given = dict(recipe.columns or {})
    worked = given.pop("solution", None) or column_of(row.columns, SOLUTIONS) or SOLUTIONS
    solutions = replace(columns, answer=worked, **{k: v for k, v in given.items() if k != "answer"})
    answers = replace(columns, **given)
    name = f"row {row.number}"
    solution = solutions.problem(row.columns, row.place, name).answer
    problem = answers.problem(row.columns, row.place, name, str if own is None else own.answer)
    return problem, solution, column_of(row.columns, answers.answer) == column_of(row.columns, worked)
