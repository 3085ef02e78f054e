"""Judging mathematical answers."""

from __future__ import annotations

from ctpo.extras import require
from ctpo.tasks.judge import Judge
from ctpo.tasks.math.answers import as_number, canonical, final_answer
from ctpo.tasks.math.verifier import Verifier, shared_verifier


class MathCheck(Judge):
    """Whether the completion's final answer equals the reference answer mathematically.

    Plain numbers and equal texts are compared here. Everything else (LaTeX, fractions, sets, intervals) is compared by
    `math-verify`, in a process of its own with a time limit.

    Example:
        MathCheck()("The answer is \\boxed{0.50}.", "1/2")  # True
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

    def _judge(self, completion: str, answer: str) -> str:
        given = final_answer(completion)
        if given is None:
            return "no answer"
        if canonical(given) == canonical(answer):
            return "right"
        number, expected = as_number(given), as_number(answer)
        if number is not None and expected is not None:
            return "right" if number == expected else "wrong"
        return (self._verifier or shared_verifier()).compare(answer, given)


def extract(completion: str) -> str | None:
    """The final answer in canonical form, or None."""
    answer = final_answer(completion)
    return None if answer is None else canonical(answer)
