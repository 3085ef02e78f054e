"""The figures of an evaluation with several samples for each problem, with standard errors clustered by problem.

Problems are independent, but samples of one problem are not. So every figure is a mean over problems of one number
per problem, and its standard error is the standard error of that mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from ctpo.runs.means import mean


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean m over n problems and its standard error sqrt(Σ (x − m)² / (n − 1) / n), which is 0 for one problem.

    With one 0/1 answer per problem the error is sqrt(m (1 − m) / (n − 1)).

    Raises:
        ValueError: if there are no values.

    Example:
        mean_and_error([1.0, 0.0, 1.0, 1.0])  # (0.75, 0.25)
    """
    if not values:
        raise ValueError("no problems were evaluated; ask for at least one")
    over_problems = mean(values)
    return over_problems.value, over_problems.stderr or 0.0


def pass_at_k(samples: int, right: int, k: int) -> float:
    """An unbiased estimate of the chance that at least one of k samples is right: 1 − C(n − c, k) / C(n, k).

    Args:
        samples: n, how many samples were drawn.
        right: c, how many of them are right.
        k: at most n.

    Raises:
        ValueError: if the numbers contradict each other.

    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1.

    Example:
        pass_at_k(samples=4, right=1, k=2)  # 0.5
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise ValueError(
            f"pass@{k} of {right} right in {samples} samples: use 0 <= right <= samples, 1 <= k <= samples"
        )
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(
    answers: Sequence[str | None], right: Sequence[bool], votes: Sequence[Hashable] | None = None
) -> bool:
    """Whether the most frequent answer of a problem is right.

    Args:
        answers: the answer of each sample. None does not vote. Of equally frequent answers, the earliest wins.
        right: whether each sample is right.
        votes: what each sample votes for, if it has an answer: equal values are votes for the same answer. By default
            right answers are the same, because they equal the reference, and others are if their texts are.

    Example:
        majority(["1/2", "0.5", "3", "3", "\\frac12"], [True, True, False, False, True])  # True
    """
    if votes is None:
        votes = [True if is_right else answer for answer, is_right in zip(answers, right, strict=True)]
    cast = [
        (vote, is_right)
        for answer, vote, is_right in zip(answers, votes, right, strict=True)
        if answer is not None
    ]
    if not cast:
        return False
    # Equal counts are in order of first appearance.
    winner = Counter(vote for vote, _ in cast).most_common(1)[0][0]
    return next(is_right for vote, is_right in cast if vote == winner)


def reported_ks(samples: int) -> list[int]:
    """The k for which pass@k is reported: 1, 2, 4, … and the number of samples itself."""
    powers = [2**i for i in range(samples.bit_length())]
    return sorted({*powers, samples})


def average(results: Mapping[str, Mapping[str, Any]], samples: int) -> dict[str, Any]:
    """The mean over tasks, which all count the same, and its standard error: independent errors add in squares."""
    means = [figures[f"avg@{samples}"] for figures in results.values()]
    errors = [figures["stderr"] for figures in results.values()]
    return {
        "average": math.fsum(means) / len(means),
        "average_stderr": math.sqrt(math.fsum(error**2 for error in errors)) / len(errors),
    }
