"""Judging the stored responses of an evaluation again, without its model: `ctpo eval --rejudge`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctpo.errors import UserError
from ctpo.evaluation.against import Against
from ctpo.evaluation.identity import judged_with
from ctpo.evaluation.judged import JudgedResponse, judge
from ctpo.evaluation.metrics import average
from ctpo.evaluation.sampled import summarise
from ctpo.evaluation.stored import (
    Folder,
    Group,
    check_lines,
    complete_groups,
    flat,
    key,
    moved,
    write_responses,
)
from ctpo.runs.atomic import write_json
from ctpo.runs.files import read_bytes
from ctpo.tasks import Task
from ctpo.tasks.task import check_ready


@dataclass(frozen=True, kw_only=True)
class Rejudged:
    """An evaluation whose responses have been judged again."""

    figures: dict[str, Any]
    """As `eval.json` holds them."""
    complete: bool
    """Whether the evaluation was complete, so that `eval.json` was written."""
    before: dict[str, float]
    """The accuracy of each task by the verdicts before."""
    changed: dict[str, list[tuple[JudgedResponse, JudgedResponse]]]
    """For each task, the responses that got another verdict, as they were and as they are."""


def stored_tasks(path: Path) -> list[str]:
    """The names of the tasks of the evaluation in a directory.

    Raises:
        UserError: if it holds none, or is damaged.
    """
    names = list(Folder(path, "--rejudge").read(earlier=True))
    if not names:
        raise UserError(f"--rejudge {path} holds no evaluation; give the --output directory of one")
    return names


def rejudge(
    path: Path,
    tasks: Mapping[str, Task],
    *,
    against: Against | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Rejudged:
    """Judge the responses in a directory with the present check and reference answers, and write what comes of it.

    Args:
        path: the `--output` directory of an evaluation.
        tasks: its tasks, by the names that it was made with.
        against: another evaluation, as in `run_suite`.
        notice: called with sentences about what could not be judged as usual.

    Raises:
        UserError: if the directory holds no evaluation, has no responses to a task, or is damaged.
    """
    folder = Folder(path, "--rejudge")
    identities = folder.read(earlier=True)
    before: dict[str, list[Group]] = {}
    present: dict[str, list[Group]] = {}
    after: dict[str, list[Group]] = {}
    for name, task in tasks.items():
        check_ready(task)
        file = folder.transcripts(name, len(tasks))
        check_lines(file)
        before[name] = complete_groups(file, identities[name].samples)
        if not before[name]:
            raise UserError(
                f"--rejudge {path} holds no complete responses to {name}; sample some with --output"
            )
        seed = identities[name].sampled.get("seed")
        present[name] = _with_present_answers(name, task, before[name], seed, notice)
    if against is not None:
        problems = {name: [group[0].problem for group in groups] for name, groups in present.items()}
        for sentence in against.check(tasks, problems):
            notice(sentence)
    for name, task in tasks.items():
        rows = iter(judge(task, flat(present[name])))
        after[name] = [[next(rows) for _ in group] for group in present[name]]
    old = _figures(folder)
    results = {
        name: {
            **summarise(tasks[name], flat(groups), identities[name].samples),
            "seconds": old.get("results", {}).get(name, {}).get("seconds"),
        }
        for name, groups in after.items()
    }
    if against is not None:
        for name, groups in after.items():
            results[name]["against"] = against.difference(name, flat(groups), identities[name].samples)
    samples = max(identity.samples for identity in identities.values())
    figures = {**old, "samples": samples, "results": results, **average(results, samples)}
    folder.write({**identities, **{name: replace(identities[name], judged="") for name in tasks}})
    for name, groups in after.items():
        write_responses(folder.transcripts(name, len(tasks)), groups)
    folder.write({name: replace(identities[name], judged=judged_with(task)) for name, task in tasks.items()})
    if old:
        write_json(folder.figures, figures)
    return Rejudged(
        figures=figures,
        complete=bool(old),
        before={name: _accuracy(groups) for name, groups in before.items()},
        changed={name: moved(flat(before[name]), flat(after[name])) for name in tasks},
    )


def _with_present_answers(
    name: str, task: Task, groups: list[Group], seed: Any, notice: Callable[[str], None]
) -> list[Group]:
    """The responses with the reference answers that their problems have now, as far as those are at hand."""
    try:
        problems = task.problems("test", len(groups), seed if isinstance(seed, int) else 0)
    except UserError as error:
        notice(f"{name}: judged by the stored answers, because its problems cannot be loaded: {error}")
        return groups
    present = {key(problem): problem for problem in problems}
    gone = sum(key(group[0].problem) not in present for group in groups)
    if gone:
        notice(f"{name}: {gone} problems have changed or are gone; they are judged by their stored answers")
    return [
        [replace(row, problem=present.get(key(row.problem), row.problem)) for row in group]
        for group in groups
    ]


def _figures(folder: Folder) -> dict[str, Any]:
    """The figures of the evaluation so far; empty if it is not complete or the file is damaged."""
    try:
        content = json.loads(read_bytes(folder.figures))
        return {**content, "results": {name: dict(each) for name, each in content["results"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _accuracy(groups: list[Group]) -> float:
    rows = [row.score for row in flat(groups)]
    return sum(rows) / len(rows)
