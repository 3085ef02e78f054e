"""Errors of a user's own code: one line with the file, the line, the problem and the completion."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest

from ctpo.errors import UserError
from ctpo.tasks import Problem, Task, get_task, reward_function
from ctpo.tasks.guard import Guarded
from ctpo.tasks.judge import Judge
from ctpo.tasks.task import judgements


def _problems(split: str, count: int, seed: int) -> list[Problem]:
    return [Problem(prompt="2+2", answer="4", id="sum-4")]


def _divide(completion: str, answer: str) -> bool:
    return int(completion) / 0 == int(answer)


def _say(value: Any, *_: Any) -> Any:
    return value


class _Own(Judge):
    def _judge(self, pairs: Any) -> list[str]:
        raise KeyError("lost")


def _task(**parts: Any) -> Task:
    return Task(**{"name": "sums", "problems": _problems, "check": partial(_say, True), **parts})


def test_an_exception_names_file_line_problem_and_completion() -> None:
    line = inspect.getsourcelines(_divide)[1] + 1
    expected = (
        rf"task \S*test_guard.py line {line}: check raises ZeroDivisionError: division by zero "
        r"\(problem sum-4, the completion '7', the answer '4'\); correct it"
    )
    with pytest.raises(UserError, match=expected) as caught:
        judgements(_task(check=_divide), ["7"], ["4"], ["sum-4"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)  # a script's traceback shows both
    with pytest.raises(UserError, match=expected):
        reward_function(_task(check=_divide))(["p"], ["7"], ["4"], id=["sum-4"])
    with pytest.raises(
        UserError, match=r"check raises ValueError: invalid literal.*completion '7* … 7*x'"
    ) as long:
        judgements(_task(check=_divide), ["7" * 500 + "x"], ["4"], ["sum-4"])
    assert len(str(long.value)) < 700


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"check": partial(_say, "wrong")}, r"check returns 'wrong'; return True or False \(problem sum-4"),
        ({"check": partial(_say, (0.0, "why"))}, r"check returns \(0.0, 'why'\)"),
        ({"check": _Own()}, "check.verdicts raises KeyError: 'lost'"),
        ({"reward": lambda completion, answer: {}[answer]}, "reward raises KeyError: '4' .problem sum-4, "),
        ({"reward": partial(_say, "good")}, "the reward of problem sum-4 is 'good', not a number"),
    ],
)
def test_what_a_task_of_a_script_returns(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        reward_function(_task(**parts))(["p"], ["7"], ["4"], id=["sum-4"])
    assert "\n" not in str(caught.value)


def test_problems_and_extract_return_what_they_should() -> None:
    with pytest.raises(UserError, match=r"problems returns 'x'; return a list of ctpo\.tasks\.Problem"):
        _task(problems=partial(_say, ["x"][0])).problems("train", 1, 0)
    extract = _task(extract=lambda completion: 7).extract
    assert extract is not None
    with pytest.raises(
        UserError, match=r"extract returns 7; return the answer as text, .*the completion 'x'"
    ):
        extract("x")


def test_only_the_users_code_is_guarded() -> None:
    shipped, own = get_task("gsm8k"), _task()
    assert not isinstance(shipped.check, Guarded)
    assert isinstance(own.check, Guarded)
    assert _task(check=shipped.check).check is shipped.check
    assert _task(check=own.check).check is own.check
    assert _task(check=_divide) == _task(check=_divide)
