"""Judging a mathematical answer."""

from __future__ import annotations

from collections import Counter

from ctpo.tasks.extras import require
from ctpo.tasks.math.answers import as_number, canonical, final_answer
from ctpo.tasks.math.verifier import Verifier, shared_verifier


class MathCheck:
    """True where the completion's final answer equals the reference, as mathematics.

    Plain numbers and equal texts are settled here; everything else (LaTeX, fractions, sets, intervals) is for
    `math-verify`, in a process of its own with a time limit. Never raises on odd text; `account` counts how
    each completion was judged: right, wrong, no answer, unparsable, timeout.
    """

    def __init__(self, verifier: Verifier | None = None) -> None:
        self._verifier = verifier
        self.account: Counter[str] = Counter()

    def __call__(self, completion: str, answer: str) -> bool:
        return self.verdict(completion, answer) == "right"

    def require(self) -> None:
        """Refuse where math-verify is not installed.

        Raises:
            UserError: if so.
        """
        if self._verifier is None:
            require("math_verify", "math", "checking mathematical answers")

    def verdict(self, completion: str, answer: str) -> str:
        """Return "right", "wrong", "no answer", "unparsable" or "timeout"."""
        verdict = self._judge(completion, answer)
        self.account[verdict] += 1
        return verdict

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
