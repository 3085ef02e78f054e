"""The figures against enumeration and textbook formulas."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from ctpo.evaluation.metrics import majority, mean_and_error, pass_at_k, reported_ks


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int) -> None:
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([i < c for i in range(n)], k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_impossible_counts_are_refused(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {right} right in {samples}"):
        pass_at_k(samples, right, k)


def test_the_error_is_that_of_a_mean_over_problems() -> None:
    values = [random.Random(i).random() for i in range(50)]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert error == pytest.approx(statistics.stdev(values) / 50**0.5)
    answers = [True] * 7 + [False] * 13
    assert mean_and_error(answers) == pytest.approx((0.35, (0.35 * 0.65 / 19) ** 0.5))
    assert mean_and_error([0.25]) == (0.25, 0.0)
    with pytest.raises(ValueError, match="no problems"):
        mean_and_error([])


def test_clustering_counts_problems_not_samples() -> None:
    """Eight identical samples of each problem say no more than one."""
    one = mean_and_error([1, 0, 1, 1, 0])
    assert mean_and_error([sum([x] * 8) / 8 for x in (1, 0, 1, 1, 0)]) == one


@pytest.mark.parametrize(
    ("answers", "right", "wins"),
    [
        (["7", "8", "8"], [True, False, False], False),
        (["7", "8", "7"], [True, False, True], True),
        ([None, None, "7"], [False, False, True], True),
        (["8", "7"], [False, True], False),
        (["7", "8"], [True, False], True),
        ([None, None], [False, False], False),
        (["1/2", "3", "3", "0.5", "0.50"], [True, False, False, True, True], True),
    ],
)
def test_majority(answers: list[str | None], right: list[bool], wins: bool) -> None:
    assert majority(answers, right) is wins


def test_reported_ks() -> None:
    assert [reported_ks(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
