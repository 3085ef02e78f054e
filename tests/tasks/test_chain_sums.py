"""Sums of three numbers: problems, splits and the judge."""

from __future__ import annotations

import pytest

from ctpo.tasks import get_task
from ctpo.tasks.chain_sums import EXAMPLES

TASK = get_task("chain-sums")


def test_answers_are_what_python_says_and_operands_have_two_digits() -> None:
    for problem in TASK.problems("train", 300, 0):
        assert str(eval(problem.prompt)) == problem.answer
        operands = problem.prompt.replace("-", "+").split("+")
        assert [len(operand) for operand in operands] == [2, 2, 2]


def test_splits_share_no_problem_with_each_other_or_with_the_examples() -> None:
    train, test = (
        {p.prompt for seed in (0, 1) for p in TASK.problems(split, 2000, seed)} for split in ("train", "test")
    )
    assert not train & test
    assert not (train | test) & {message["content"] for message in EXAMPLES}
    assert TASK.problems("test", 5, 3) == TASK.problems("test", 9, 3)[:5]


def test_worked_examples_are_right() -> None:
    for asked, program, printed, said in zip(*(iter(EXAMPLES),) * 4, strict=True):
        assert program["content"] == f"```python\nprint({asked['content']})\n```"
        assert printed["content"] == str(eval(asked["content"]))
        assert TASK.check(said["content"], printed["content"])


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("```python\nprint(48+17-65)\n```\n0\nThe answer is 0.", True),
        ("The answer is 12. No: The answer is 0.", True),
        ("The answer is 0. Or rather, the answer is 1.", False),
        ("```python\nprint(48+17-65)\n```\n0\n", False),  # printed, but not said
        ("The answer is -0", False),
        ("The answer is 0.5", False),
        ("The answer is 00", False),
        ("", False),
    ],
)
def test_the_last_answer_counts(completion: str, right: bool) -> None:
    assert TASK.check(completion, "0") == right
