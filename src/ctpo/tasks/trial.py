"""Trying a task before it is trained on: its problems, its splits, and its check on odd completions."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ctpo.errors import Notice, UserError
from ctpo.tasks.guard import CodeError, on_problem
from ctpo.tasks.prompts import prompt_key
from ctpo.tasks.repeats import overlap, repeats
from ctpo.tasks.sources import DatasetSource
from ctpo.tasks.task import SPLITS, Problem, Task, check_ready, judgements

_FORMS: Final = (
    "{answer}",
    "{answer}.",
    "={answer}",
    "The answer is {answer}.",
    "\\boxed{{{answer}}}",
    "<answer>{answer}</answer>",
    "#### {answer}",
)
"""How completions state an answer. The first one in which the check accepts the reference answer is used."""
_JUDGED: Final = 12
"""Problems whose reference answers are judged, against their own and each other's."""
_SLOW_S: Final = 1.0
_LONG: Final = 20_000
"""Characters of the longest odd completion."""
_ODD: Final = {
    "the empty completion": "",
    "white space": " \n\t\u00a0",
    "half of a surrogate pair": "the answer is \ud83d",
    "a zero byte": "the answer is \0",
    "digits that are not ASCII": "the answer is ٣٤ or ４２ or ½",
    "boxes in boxes": "\\boxed{" * 40 + "1" + "}" * 40,
    "boxes that are not closed": "\\boxed{" * (_LONG // 7),
    "not a number": "\\boxed{nan}",
    "a number without end": "\\boxed{" + "9" * (_LONG // 4) + "}",
    "a power that nobody can compute": "\\boxed{9^{9^{9^{9}}}}",
    "one long word": "a" * _LONG,
    "many lines": "#### \n" * (_LONG // 6),
    "control characters": "\x1b[2J\r\u202e\u2028 the answer is",
    "only a native tool call": '<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n</tool_call>',
    "only a block of code": "```python\nprint(1)\n```\n",
}


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The problems of one split."""

    problems: list[Problem]
    seconds: float
    missing: str | None = None
    """Why there are none."""


@dataclass(kw_only=True)
class Trial:
    """What came of trying a task."""

    draws: dict[str, Draw] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    """What holds, one sentence each."""
    findings: list[str] = field(default_factory=list)
    """What is wrong, one sentence each."""

    def note(self, wrong: Sequence[str], right: str) -> None:
        """Add the findings, or what holds if there are none."""
        self.findings += wrong
        self.passed += [] if wrong else [right]


def try_task(task: Task, count: int, seed: int = 0) -> Trial:
    """Draw problems of both splits, and judge odd completions and reference answers.

    Args:
        task: the task.
        count: how many problems of each split are drawn.
        seed: of the draw.

    Raises:
        UserError: if there are no problems at all, or if the judge lacks something.
    """
    check_ready(task)
    trial = Trial()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        for split in SPLITS:
            trial.draws[split] = _draw(task, split, count, seed)
        given = [problem for draw in trial.draws.values() for problem in draw.problems]
        if not given:
            raise UserError(next(draw.missing or "there are no problems" for draw in trial.draws.values()))
        trial.note(list(_wrong_draws(task, trial.draws, count, seed)), "equal arguments give equal problems")
        tested = _of_two_seeds(task, trial.draws["test"], count, seed)
        by_answer = task.environment is not None
        shared = overlap(trial.draws["train"].problems, tested, by_answer=by_answer)
    if all(draw.problems for draw in trial.draws.values()):
        trial.note(
            [
                f"{len(shared)} test problems are also training problems, the first is {each.id}"
                for each in shared[:1]
            ],
            "no test problem is a training problem",
        )
    trial.findings += _repeats(task, trial.draws)
    trial.findings += dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, Notice))
    if task.check is not None:  # or else an environment judges
        _judge_answers(task, given, trial)
    functions = _functions(task, given[0])
    if functions:
        _judge_odd(task, given[0], functions, trial)
    return trial


def _draw(task: Task, split: str, count: int, seed: int) -> Draw:
    started = time.perf_counter()
    try:
        problems = task.problems(split, count, seed)
    except CodeError:
        raise
    except UserError as error:  # a dataset may have one split alone
        return Draw(problems=[], seconds=0.0, missing=str(error))
    missing = None if problems else f"task {task.name!r} gives no problems of the {split} split"
    return Draw(problems=problems, seconds=time.perf_counter() - started, missing=missing)


def _of_two_seeds(task: Task, draw: Draw, count: int, seed: int) -> list[Problem]:
    """The test problems, with those of another seed if the task makes them itself."""
    if draw.missing is not None or isinstance(task.problems, DatasetSource):
        return draw.problems
    return [*draw.problems, *task.problems("test", count, seed + 1)]


def _wrong_draws(task: Task, draws: dict[str, Draw], count: int, seed: int) -> Iterator[str]:
    for split, draw in draws.items():
        if draw.missing is not None:
            continue
        if len(draw.problems) > count:
            yield f"{split}: {len(draw.problems)} problems are returned where {count} were asked for"
        again = task.problems(split, count, seed)
        pairs = zip(draw.problems, again, strict=False)
        differing = [one.id for one, other in pairs if one != other]
        if differing or len(again) != len(draw.problems):
            yield (
                f"{split}: equal arguments give other problems, the first is {[*differing, again[-1:]][0]}; draw from "
                "random.Random(seed)"
            )


def _repeats(task: Task, draws: dict[str, Draw]) -> Iterator[str]:
    """What is repeated in the problems that a task makes itself. Of a dataset, a warning has said it.

    Problems of an environment may have one prompt, because the environment makes the difference.
    """
    if not isinstance(task.problems, DatasetSource) and task.environment is None:
        for split, draw in draws.items():
            yield from (f"{split}: {sentence}" for sentence in repeats(draw.problems))


def _judge_answers(task: Task, problems: Sequence[Problem], trial: Trial) -> None:
    """Judge each reference answer as an answer to its own problem, and to the others."""
    some = list({prompt_key(each.prompt): each for each in problems}.values())
    step = max(1, len(some) // _JUDGED)
    some = some[::step][:_JUDGED]
    accepted: dict[str, str] = {}
    try:
        for form in _FORMS:
            rest = [each for each in some if each.id not in accepted]
            texts = [form.format(answer=_plain_answer(each)) for each in rest]
            given = judgements(task, texts, [each.answer for each in rest], [each.id for each in rest])
            accepted |= {
                each.id: form for each, judgement in zip(rest, given, strict=True) if judgement.score == 1
            }
        refused = [each for each in some if each.id not in accepted]
        shown = " or ".join(f"`{form.format(answer='…')}`" for form in dict.fromkeys(accepted.values()))
        trial.note(
            [
                f"the reference answer of {len(refused)} of {len(some)} problems is wrong in every usual form, the "
                f"first is {_short(each.answer)} of problem {each.id}"
                for each in refused[:1]
            ],
            f"the reference answers of {len(some)} problems are right, written as {shown}",
        )
        others = [
            (one, other)
            for one in some
            if one.id in accepted
            for other in [*map(_plain_answer, some), *_near(_plain_answer(one))]
            if _different(_plain_answer(one), other)
        ]
        texts = [accepted[one.id].format(answer=other) for one, other in others]
        given = judgements(task, texts, [one.answer for one, _ in others], [one.id for one, _ in others])
        paid = [pair for pair, judgement in zip(others, given, strict=True) if judgement.score == 1]
        if not others:
            return
        trial.note(
            [
                f"{len(paid)} of {len(others)} other answers are right: {_short(other)} where the reference is "
                f"{_short(_plain_answer(one))} (problem {one.id})"
                for one, other in paid[:1]
            ],
            f"{len(others)} other answers, of other problems or with one digit more, are wrong",
        )
    except CodeError as error:
        trial.findings.append(str(error))


def _judge_odd(
    task: Task, problem: Problem, functions: Sequence[tuple[str, Callable[[str], Any]]], trial: Trial
) -> None:
    """Run every function of the task on odd completions."""
    findings: list[str] = []
    slowest = 0.0
    for name, text in _odd_completions(task).items():
        for part, function in functions:
            started = time.perf_counter()
            try:
                with on_problem(problem.id):
                    findings += _complaints(part, name, problem, function(text))
            except UserError as error:
                findings.append(str(error))
            seconds = time.perf_counter() - started
            slowest = max(slowest, seconds)
            if seconds > _SLOW_S:
                findings.append(f"{part} takes {seconds:.1f} s on {name} ({len(text):,} characters)")
    trial.note(
        findings,
        f"{len(_odd_completions(task))} odd completions are wrong, in {1000 * slowest:.0f} ms at most",
    )


def _functions(task: Task, problem: Problem) -> list[tuple[str, Callable[[str], Any]]]:
    """The functions of a task that get a completion."""
    functions: list[tuple[str, Callable[[str], Any]]] = []
    check, reward, extract = task.check, task.reward, task.extract
    if check is not None:
        functions.append(("check", lambda text: check(text, problem.answer)))
    if reward is not None:
        functions.append(("reward", lambda text: reward(text, problem.answer)))
    if extract is not None:
        functions.append(("extract", extract))
    return functions


def _complaints(part: str, name: str, problem: Problem, value: Any) -> list[str]:
    """What is wrong about a value that a function returned for an odd completion."""
    if part == "check" and value is None:
        return [f"check returns None for {name} (problem {problem.id}); return True or False"]
    if part == "check" and value:
        return [f"check accepts {name} as {_short(problem.answer)} (problem {problem.id})"]
    if part == "reward" and value is not None:
        try:
            finite = not isinstance(value, str | bytes) and math.isfinite(value)
        except (TypeError, OverflowError):
            finite = False
        return (
            []
            if finite
            else [f"reward is {_short(value)} for {name} (problem {problem.id}); return a number"]
        )
    return []


def _odd_completions(task: Task) -> dict[str, str]:
    own = {} if task.tool is None else {"only a tool call": f"{task.tool.open}print(1){task.tool.close}"}
    return {**_ODD, **own}


def _plain_answer(problem: Problem) -> str:
    """The reference answer as a model would state it. That of a generator's problem is inside of its entry."""
    try:
        entry = json.loads(problem.answer)
    except (ValueError, RecursionError):
        return problem.answer
    return str(entry["answer"]) if isinstance(entry, dict) and "answer" in entry else problem.answer


def _near(answer: str) -> list[str]:
    """Wrong answers that hold the right one: a check by the end or the beginning of a text accepts them."""
    return [f"1{answer}", f"{answer}1"] if answer.isascii() and answer.isdigit() else []


def _different(one: str, other: str) -> bool:
    return one.casefold().split() != other.casefold().split()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
