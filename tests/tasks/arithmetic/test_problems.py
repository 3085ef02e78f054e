"""Chains of sums: the problems, and the check of completions."""

from __future__ import annotations

import pytest

from ctpo.tasks import get_task
from ctpo.tasks.arithmetic.task import terms
from ctpo.tasks.splits import held_out

TASK = get_task("arithmetic")


def test_equal_arguments_give_equal_problems_and_a_longer_list_only_continues() -> None:
    few, many = TASK.problems("train", 50, 3), TASK.problems("train", 200, 3)
    assert many[:50] == few
    assert TASK.problems("train", 50, 4) != few
    assert len({p.id for p in many}) == len({p.prompt for p in many}) == 200


def test_no_problem_is_in_both_splits() -> None:
    train = {p.prompt for seed in range(3) for p in TASK.problems("train", 2000, seed)}
    test = {p.prompt for seed in range(3) for p in TASK.problems("test", 2000, seed)}
    assert not train & test


def test_the_split_belongs_to_the_prompt_not_to_the_draw() -> None:
    assert all(held_out(p.prompt) for p in TASK.problems("test", 200, 5))
    assert not any(held_out(p.prompt) for p in TASK.problems("train", 200, 5))
    # Fixed on purpose: were the hash or the draw to change, published pass rates would lose their meaning.
    assert TASK.problems("test", 1, 0)[0].prompt == "95-95+87-20-47-26="


def test_answers_are_what_python_says() -> None:
    for problem in TASK.problems("test", 300, 1):
        assert problem.prompt.endswith("=")
        assert int(problem.answer) == eval(problem.prompt[:-1])
        operands = terms(problem.prompt)
        assert len(operands) == 6
        assert all(1 <= operand <= 99 for _, operand in operands)
        assert sum(operand if sign == "+" else -operand for sign, operand in operands) == int(problem.answer)


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("<py>print(3+67)</py><out>70</out>70-29=41;=41", "41", True),
        ("=-25", "-25", True),
        ("=82\n", "82", True),
        ("=82", "-82", False),
        ("=-82", "82", False),
        ("=082", "82", False),  # the format asks for the plain integer
        ("=182", "82", False),
        ("=82=", "82", False),
        ("=82;", "82", False),
        ("82", "82", False),
        ("=", "82", False),
        ("", "82", False),
        ("=8 2", "82", False),
        ("=82</py>", "82", False),
        ("<py>print(41+41)</py><out>82</out>", "82", False),  # the tool's word is not yet an answer
        ("=81=82", "82", True),  # the last word counts
        ("=٨٢", "82", False),
        ("=" + "9" * 100_000, "82", False),
    ],
)
def test_check(completion: str, answer: str, right: bool) -> None:
    assert TASK.check(completion, answer) is right


@pytest.mark.parametrize(
    ("split", "count", "message"),
    [
        ("dev", 1, "split='dev' is unknown; use one of train, test"),
        ("test", -1, "count=-1"),
        ("test", 2.5, "count=2.5"),
    ],
)
def test_bad_requests_are_refused(split: str, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TASK.problems(split, count, 0)
