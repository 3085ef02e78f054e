"""Worksheets: the chains they deal out, how they are marked, and that a model of ours really works through one."""

from __future__ import annotations

import re

import pytest

from ctpo.errors import UserError
from ctpo.evaluation import evaluate
from ctpo.evaluation.model import load_model
from ctpo.rollout import TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import open_tools
from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import model_path
from ctpo.tasks.arithmetic.worksheet import Worksheet, chains, problems
from ctpo.tasks.splits import held_out

COUNT = 5


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    model, tokenizer = load_model(str(model_path("embedded-worksheet")))
    return TransformersEngine(model, tokenizer)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_chains_of_a_worksheet_are_right_and_of_its_split(split: str) -> None:
    for problem in problems(split, 5, 0):
        sheet = chains(str(problem.prompt), 20)
        assert sheet[0] == (problem.prompt, int(problem.answer))
        assert all(eval(prompt.removesuffix("=")) == total for prompt, total in sheet)
        assert all(held_out(prompt) == (split == "test") for prompt, _ in sheet)
        assert sheet[:7] == chains(str(problem.prompt), 7)


def test_each_problem_is_marked_and_the_next_one_dealt_out() -> None:
    (problem,) = problems("train", 1, 0)
    sheet = chains(str(problem.prompt), 3)
    environment = Worksheet(3)
    for _ in range(2):  # an environment is used again
        environment.reset(problem)
        assert environment.step(f"1+2=3;={sheet[0][1]}") == (f";{sheet[1][0]}", 1 / 3, False)
        assert environment.step("=-0") == (f";{sheet[2][0]}", 0.0, False)
        assert environment.step(f"={sheet[2][1]}") == (None, 1 / 3, True)


def test_a_model_works_through_worksheets(engine: TransformersEngine) -> None:
    """Its rewards are those that a reader of the finished text would give, problem by problem."""
    task = get_task(f"worksheet?problems={COUNT}")
    drawn = task.problems("test", 32, 0)
    with open_tools(task) as tools:
        evaluation = evaluate(engine, task, drawn, Sampling(max_new_tokens=64 * COUNT), tools=tools)
    right = 0
    for response in evaluation.responses:
        sheet = chains(str(response.problem.prompt), COUNT)
        rest, replies = response.text, []
        for prompt, _ in sheet[1:]:
            reply, _, rest = rest.partition(f";{prompt}")
            replies.append(reply)
        expected = [
            float(re.search(rf"={total}\Z", reply) is not None) / COUNT
            for reply, (_, total) in zip([*replies, rest], sheet, strict=True)
        ]
        assert response.turn_rewards == expected
        assert response.score == pytest.approx(sum(expected))
        right += sum(value > 0 for value in expected)
    assert 0.15 < right / (32 * COUNT) < 0.5  # what reinforcement learning has to work with
    assert evaluation.accuracy == pytest.approx(right / (32 * COUNT))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("worksheet?problems=0", "worksheet of 0 problems: use 1 to 64"),
        ("worksheet?problems=many", "many is no number of problems"),
        ("worksheet?problems=7&tool=none", "no option 'tool'"),
        ("arithmetic?problems=7", "no option 'problems'"),
    ],
)
def test_what_is_no_worksheet_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        get_task(name)
