"""Judging a mathematical answer."""

from __future__ import annotations

from ctpo.extras import require
from ctpo.tasks.judge import Judge
from ctpo.tasks.math.answers import as_number, canonical, final_answer
from ctpo.tasks.math.verifier import Verifier, shared_verifier


class MathCheck(Judge):
    """True where the completion's final answer equals the reference, as mathematics.

    Plain numbers and equal texts are settled here; everything else (LaTeX, fractions, sets, intervals) is for
    `math-verify`, in a process of its own with a time limit.
    """

    def __init__(self, verifier: Verifier | None = None) -> None:
        super().__init__()
        self._verifier = verifier

    def require(self) -> None:
        """Refuse where math-verify is not installed.

        Raises:
            UserError: if so.
        """
        if self._verifier is None:
            require("checking mathematical answers", "math", "math_verify")

    def _judge(self, completion: str, answer: str) -> str:
        found = final_answer(completion)
        if found is None:
            return "no answer"
        if canonical(found) == canonical(answer):
            return "right"
        given, expected = as_number(found), as_number(answer)
        if given is not None and expected is not None:
            return "right" if given == expected else "wrong"
        return (self._verifier or shared_verifier()).compare(answer, found)


def extract(completion: str) -> str | None:
    """Return the final answer in canonical form, or None."""
    found = final_answer(completion)
    return None if found is None else canonical(found)
