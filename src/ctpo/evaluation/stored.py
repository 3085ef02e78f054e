"""The directory of `ctpo eval --output`: which of its responses still hold, and which are sampled or judged anew.

transcripts.jsonl   one response on each line; with several tasks `transcripts-TASK.jsonl`
identity.json       what the responses were sampled with, and what judged them
eval.json           the figures, once the evaluation is complete
replaced-1/, …      the files as they were before responses in them were dropped
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.evaluation.judged import JudgedResponse, judge
from ctpo.runs.atomic import write_json, write_json_lines
from ctpo.runs.files import read_bytes
from ctpo.runs.json_lines import Line, read_json_lines
from ctpo.tasks import Problem, Task
from ctpo.tasks.prompts import prompt_key

Group = list[JudgedResponse]
"""All responses to one problem, in order."""

_FORMAT: Final = 1
_OF_EARLIER_VERSIONS: Final = "settings.json"
_MOVES_NAMED: Final = 3


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the responses to one task are bound to, besides the problems."""

    sampled: Mapping[str, Any]
    """`ctpo.evaluation.identity.sampled_with`."""
    judged: str
    """`ctpo.evaluation.identity.judged_with`."""

    @property
    def samples(self) -> int:
        """How many responses each problem has."""
        samples: int = self.sampled["samples"]
        return samples

    def changes(self, since: Identity) -> list[str]:
        """The names of the parts with which responses are sampled that are other ones than before."""
        names = [*since.sampled, *(name for name in self.sampled if name not in since.sampled)]
        return [name for name in names if self.sampled.get(name) != since.sampled.get(name)]


class Folder:
    """The directory of one evaluation.

    Args:
        path: of the directory.
        option: the option that names it, for messages.
    """

    def __init__(self, path: Path, option: str = "--output") -> None:
        self.path = path
        self.option = option

    @property
    def figures(self) -> Path:
        """The figures of the evaluation."""
        return self.path / "eval.json"

    @property
    def identity(self) -> Path:
        """What each task's responses are bound to."""
        return self.path / "identity.json"

    def transcripts(self, task: str, tasks: int) -> Path:
        """The file of one task's responses, in an evaluation of this many tasks."""
        plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in task)
        return self.path / ("transcripts.jsonl" if tasks == 1 else f"transcripts-{plain}.jsonl")

    def make(self) -> None:
        """Make the directory if there is none.

        Raises:
            UserError: if it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--output {self.path} cannot be made ({error.strerror}); choose another"
            ) from None

    def read(self, *, earlier: bool = False) -> dict[str, Identity]:
        """What each task's responses are bound to; an empty dictionary if the directory holds no evaluation.

        Args:
            earlier: whether to read an evaluation of an earlier version, which recorded nothing but settings.

        Raises:
            UserError: if the file is damaged, or if the evaluation is one of an earlier version.
        """
        settings = self.path / _OF_EARLIER_VERSIONS
        path = settings if earlier and not self.identity.exists() and settings.exists() else self.identity
        if not path.exists():
            if settings.exists() or any(self.path.glob("transcripts*.jsonl")):
                hint = (
                    f", or only judge it again: ctpo eval --rejudge {self.path}" if settings.exists() else ""
                )
                raise UserError(
                    f"{self.option} {self.path} holds an evaluation without {self.identity.name}, so its model is "
                    f"unknown; choose another{hint}"
                )
            return {}
        try:
            content = json.loads(read_bytes(path))
            if path == settings:
                known = {"samples": content["samples"], "seed": content["seed"]}
                each = {"sampled": known, "judged": ""}
                content = {"format": _FORMAT, "tasks": dict.fromkeys(content["tasks"], each)}
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']!r}")
            identities = {
                str(name): Identity(sampled={**each["sampled"]}, judged=str(each["judged"]))
                for name, each in content["tasks"].items()
            }
            if any(type(each.samples) is not int for each in identities.values()):
                raise ValueError("samples is no integer")
            return identities
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({error}); choose another directory") from None

    def write(self, identities: Mapping[str, Identity]) -> None:
        """Write what each task's responses are bound to."""
        tasks = {name: {"sampled": each.sampled, "judged": each.judged} for name, each in identities.items()}
        write_json(self.identity, {"format": _FORMAT, "tasks": tasks})

    def keep_replaced(self) -> Path:
        """Copy the present files into a new folder `replaced-N`, and return it."""
        number = 1 + sum(1 for _ in self.path.glob("replaced-*"))
        while (target := self.path / f"replaced-{number}").exists():
            number += 1
        target.mkdir()
        for file in (*self.path.glob("transcripts*.jsonl"), self.identity, self.figures):
            if file.is_file():
                shutil.copy2(file, target)
        return target


def update(
    folder: Folder,
    tasks: Mapping[str, Task],
    problems: Mapping[str, Sequence[Problem]],
    now: Mapping[str, Identity],
) -> list[str]:
    """Bring the stored responses up to date, and return what was changed, in one sentence per task.

    Responses that were sampled with something else, or to other problems, are dropped; the files as they were are
    kept in a folder of their own. Responses that something else has judged are judged anew.

    Args:
        folder: the directory of the evaluation.
        tasks, problems, now: by the names of the tasks: each, its problems, and what its responses are bound to.

    Raises:
        UserError: if the directory holds an evaluation of other tasks, or is damaged.
    """
    before = folder.read()
    if not before:
        folder.write(now)
        return []
    if list(before) != list(tasks):
        raise UserError(
            f"--output {folder.path} holds an evaluation with tasks={list(before)}, not {list(tasks)}; choose another"
        )
    sentences: list[str] = []
    fitted: dict[str, list[Group | None]] = {}
    dropped = 0
    for name, task in tasks.items():
        stored = complete_groups(folder.transcripts(name, len(tasks)), before[name].samples)
        changed = now[name].changes(before[name])
        fit = align([] if changed else stored, problems[name])
        if changed and stored:
            count = sum(map(len, stored))
            sentences.append(f"{name}: {_listed(changed)} changed, so {count} responses are sampled anew")
            dropped += count
        elif fit.left_over:
            count = sum(map(len, fit.left_over))
            sentences.append(
                f"{name}: {len(fit.left_over)} problems changed or are gone, with {count} responses"
            )
            dropped += count
        fitted[name], sentence = _judged_anew(task, fit, now[name].judged != before[name].judged)
        if sentence:
            sentences.append(f"{name}: {sentence}")
    if dropped:
        sentences[-1] += f"; the files as they were are in {folder.keep_replaced()}"
    if sentences or any(group is None for groups in fitted.values() for group in groups):
        folder.figures.unlink(missing_ok=True)  # until there are new ones
    if sentences:
        # A kill in between leaves verdicts of two checks, which no check may then take for its own.
        folder.write({name: replace(each, judged="") for name, each in before.items()})
        for name, groups in fitted.items():
            write_responses(folder.transcripts(name, len(tasks)), groups)
    folder.write(now)
    return sentences


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Stored responses, set against the present problems."""

    groups: list[Group | None]
    """The responses to each problem, None where there are none. Their problems are the present ones."""
    new_answers: set[int]
    """The places of the problems whose reference answer was another one when they were judged."""
    left_over: list[Group]
    """The responses to problems that are not among the present ones."""


def align(stored: Sequence[Group], problems: Sequence[Problem]) -> Fit:
    """Set stored responses against problems. A problem is the same if its id and its prompt are."""
    waiting: dict[tuple[str, str], list[Group]] = {}
    for group in stored:
        waiting.setdefault(key(group[0].problem), []).append(group)
    groups: list[Group | None] = []
    new_answers: set[int] = set()
    for place, problem in enumerate(problems):
        found = waiting.get(key(problem))
        if not found:
            groups.append(None)
            continue
        group = found.pop(0)
        if any(response.problem != problem for response in group):
            group = [replace(response, problem=problem) for response in group]
            new_answers.add(place)
        groups.append(group)
    return Fit(
        groups=groups,
        new_answers=new_answers,
        left_over=[group for rest in waiting.values() for group in rest],
    )


def complete_groups(path: Path, samples: int) -> list[Group]:
    """The responses in a file, problem by problem; problems without `samples` responses are left out.

    A response that was asked for again because its request had failed replaces the failed one.
    """
    groups: list[dict[int, JudgedResponse]] = []
    of_problem: dict[tuple[str, str], list[dict[int, JudgedResponse]]] = {}
    for response in _responses(path):
        mine = of_problem.setdefault(key(response.problem), [])
        for group in mine:
            held = group.get(response.sample)
            if held is None or held.error:
                group[response.sample] = response
                break
        else:
            mine.append({response.sample: response})
            groups.append(mine[-1])
    whole = [group for group in groups if len(group) == samples and max(group) < samples]
    return [[group[sample] for sample in sorted(group)] for group in whole]


def write_responses(path: Path, groups: Iterable[Group | None]) -> None:
    """Write the responses to all problems that have some."""
    write_json_lines(path, [response.record() for group in groups if group for response in group])


def judge_anew(task: Task, groups: Sequence[Group]) -> tuple[list[Group], str]:
    """The groups with the verdicts of the present check, and a sentence that says how many verdicts differ."""
    before = flat(groups)
    after = judge(task, before)
    moves = Counter((old.verdict, new.verdict) for old, new in moved(before, after))
    named = [f"{count} from {old} to {new}" for (old, new), count in moves.most_common(_MOVES_NAMED)]
    more = ["more"] if len(moves) > len(named) else []
    rest = iter(after)
    detail = f" ({', '.join([*named, *more])})" if named else ""
    return (
        [[next(rest) for _ in group] for group in groups],
        f"{len(after)} responses are judged anew: {moves.total()} verdicts differ{detail}",
    )


def moved(
    before: Sequence[JudgedResponse], after: Sequence[JudgedResponse]
) -> list[tuple[JudgedResponse, JudgedResponse]]:
    """The responses of which the verdict differs, as they were and as they are."""
    return [(old, new) for old, new in zip(before, after, strict=True) if old.verdict != new.verdict]


def flat(groups: Iterable[Group]) -> list[JudgedResponse]:
    """The responses of all groups."""
    return [response for group in groups for response in group]


def _judged_anew(task: Task, fit: Fit, new_check: bool) -> tuple[list[Group | None], str]:
    groups = list(fit.groups)
    places = [
        place
        for place, group in enumerate(groups)
        if group is not None and (new_check or place in fit.new_answers)
    ]
    if not places:
        return groups, ""
    judged, sentence = judge_anew(task, [group for place in places if (group := groups[place]) is not None])
    for place, group in zip(places, judged, strict=True):
        groups[place] = group
    count = len(fit.new_answers)
    why = [*(["the check"] if new_check else []), *([f"{count} reference answers"] if count else [])]
    return groups, f"{_listed(why)} changed, so {sentence}"


def check_lines(path: Path) -> None:
    """Check that all lines of a file hold responses, but for a last one that a kill may have cut short.

    Raises:
        UserError: naming the first that does not. What is lost may be just the wrong answers.
    """
    for line, response in _lines(path):
        if line.complete and response is None:
            raise UserError(f"{path} line {line.number} is damaged; restore the file, or sample it again")


def _responses(path: Path) -> Iterator[JudgedResponse]:
    """The readable responses in a file: a kill may have cut the last one short."""
    return (response for _, response in _lines(path) if response is not None)


def _lines(path: Path) -> Iterator[tuple[Line, JudgedResponse | None]]:
    for line in read_json_lines(path, most=sys.maxsize) if path.is_file() else []:
        try:
            yield line, JudgedResponse.from_record(line.record or {})
        except (ValueError, KeyError, TypeError):
            yield line, None


def key(problem: Problem) -> tuple[str, str]:
    """What makes a stored problem the same as a present one: its id and its prompt."""
    return problem.id, prompt_key(problem.prompt)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
