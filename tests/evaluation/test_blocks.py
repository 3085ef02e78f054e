"""How many held-out problems an evaluation draws."""

from __future__ import annotations

import math
import random

import pytest

from ctpo.evaluation.blocks import FIRST, LEAST, cautious_error, drawing_order, next_block


def drawn(chance: float, problems: int, stderr: float, seed: int) -> tuple[list[float], list[int]]:
    """The answers, right with this chance, that an evaluation draws, and the sizes of its blocks."""
    noise = random.Random(seed)
    answers = [float(noise.random() < chance) for _ in range(problems)]
    blocks: list[int] = []
    while count := next_block([answers[: sum(blocks)]], problems, stderr):
        blocks.append(count)
    return answers[: sum(blocks)], blocks


@pytest.mark.parametrize("chance", [0.0, 0.02, 0.2, 0.5, 0.8, 0.95, 1.0])
def test_it_ends_when_the_error_is_small_or_no_problem_is_left(chance: float) -> None:
    for seed in range(40):
        answers, blocks = drawn(chance, 1_000, 0.015, seed)
        n, p = len(answers), sum(answers) / len(answers)
        error = math.sqrt(p * (1 - p) / (n - 1))
        assert error <= 0.015 or n == 1_000
        assert blocks[0] == FIRST
        assert min(blocks) >= LEAST
        assert len(blocks) <= 6
        if n < 1_000:  # not many more than needed: the blocks before did not reach the error
            before = answers[: n - blocks[-1]]
            assert not before or cautious_error(before) > 0.015


def test_problems_follow_from_the_error() -> None:
    """80 of 100 are right, so 102 values, 81 of them 1, have an error of .0402; half of it needs four times as many."""
    answers = [[1.0] * 80 + [0.0] * 20]
    p = 81 / 102
    assert cautious_error(answers[0]) == pytest.approx(error := math.sqrt(p * (1 - p) / 101))
    assert next_block(answers, 10_000, error / 2) == pytest.approx(4 * 102 - 2 - 100, abs=1)
    assert next_block([*answers, [0.0, 1.0] * 50], 10_000, error / 2) > 4 * 102  # the worst figure decides
    assert next_block(answers, 10_000, error * 1.01) == 0
    assert next_block(answers, 10_000, error / 1.01) == LEAST


def test_few_right_answers_are_no_certainty() -> None:
    assert cautious_error([1.0] * 20) == pytest.approx(math.sqrt(21 / 22 * (1 / 22) / 21))
    assert next_block([[1.0] * 256], 10_000, 0.003) > 0


def test_a_small_rest_is_taken_at_once() -> None:
    assert next_block([[]], FIRST + LEAST - 1, 0.015) == FIRST + LEAST - 1
    assert next_block([[]], FIRST + LEAST, 0.015) == FIRST
    assert next_block([[0.0, 1.0] * 128], 256, 0.015) == 0  # none is left


def test_zero_draws_all() -> None:
    assert drawn(1.0, 1_000, 0.0, 0)[1] == [1_000]


def test_the_order_is_a_fixed_shuffle() -> None:
    order = drawing_order(1_000, 7)
    assert sorted(order) == list(range(1_000))
    assert order == drawing_order(1_000, 7) != drawing_order(1_000, 8)
    # Another order would break comparisons with earlier runs.
    assert drawing_order(8, 20_260_508) == [1, 0, 4, 2, 6, 5, 7, 3]
