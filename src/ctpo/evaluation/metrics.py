"""Figures of an evaluation with several samples a problem, with standard errors clustered by problem.

Samples of one problem are not independent, problems are: every figure is a mean over problems of one number a
problem, and its standard error is that of such a mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean m over problems and its standard error sqrt(Σ (x − m)² / (n (n − 1))); 0 for a single problem.

    With one 0/1 answer a problem this is sqrt(m (1 − m) / (n − 1)).

    Raises:
        ValueError: for no values at all.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no problems were evaluated; ask for at least one")
    mean = math.fsum(values) / n
    return mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n * max(n - 1, 1)))


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is right: 1 − C(n − c, k) / C(n, k).

    Args:
        samples: n, samples drawn.
        right: c, how many of them are right.
        k: at most n.
    Raises:
        ValueError: if the numbers do not fit each other.
    Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1.
    """
    if not (0 <= right <= samples and 1 <= k <= samples):
        raise ValueError(
            f"pass@{k} of {right} right in {samples} samples: use 0 <= right <= samples, 1 <= k <= samples"
        )
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(answers: Sequence[str | None], right: Sequence[bool]) -> bool:
    """Whether the most frequent answer is right; unanswered samples do not vote, the first wins a tie."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]  # in order of first appearance among equals
    return right[list(answers).index(winner)]


def reported_ks(samples: int) -> list[int]:
    """1, 2, 4, … and the number of samples itself."""
    powers = [2**i for i in range(samples.bit_length())]
    return sorted({*powers, samples})
