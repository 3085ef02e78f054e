"""Judging mathematical answers."""

from __future__ import annotations

from collections.abc import Sequence

from ctpo.extras import require
from ctpo.tasks.judge import Judge
from ctpo.tasks.math import exact
from ctpo.tasks.math.answers import final_answer
from ctpo.tasks.math.verifier import Verifier, shared_verifier


class MathCheck(Judge):
    """Whether the completion's final answer equals the reference answer mathematically.

    `exact.compare` decides what can be decided exactly and cheaply. The rest goes to `symbolic.compare`, which asks
    `math-verify`, in a process of its own with a time limit.

    Example:
        MathCheck()(r"The answer is \\boxed{0.50}.", "1/2")  # True
    """

    def __init__(self, verifier: Verifier | None = None) -> None:
        super().__init__()
        self._verifier = verifier

    def require(self) -> None:
        """Check that math-verify is installed.

        Raises:
            UserError: if it is not.
        """
        if self._verifier is None:
            require("checking mathematical answers", "math", "math_verify")

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        given = [final_answer(completion) for completion, _ in pairs]
        verdicts = self.compare(
            [(answer, text) for (_, answer), text in zip(pairs, given, strict=True) if text is not None]
        )
        rest = iter(verdicts)
        return ["no answer" if text is None else next(rest) for text in given]

    def equal(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the two answers of each pair are equal. What is not known in time is not equal."""
        return [verdict == "right" for verdict in self.compare(pairs)]

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """One verdict for each pair of a reference answer and a given answer: cheap comparisons first."""
        verdicts = [exact.compare(reference, given) for reference, given in pairs]
        left = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is None]
        rest = iter((self._verifier or shared_verifier()).compare_all(left) if left else [])
        return [next(rest) if verdict is None else verdict for verdict in verdicts]


def extract(completion: str) -> str | None:
    """The final answer in canonical form, or None."""
    answer = final_answer(completion)
    return None if answer is None else exact.canonical(answer)
