"""The base of all judges of answers: a word for each verdict, and a count of the verdicts."""

from __future__ import annotations

from collections import Counter


class Judge:
    """An `AnswerCheck` that also says why a completion is not right.

    A subclass defines `_judge`, which must not raise on odd text.
    """

    def __init__(self) -> None:
        self.account: Counter[str] = Counter()
        """How often each verdict has been given."""

    def __call__(self, completion: str, answer: str) -> bool:
        return self.verdict(completion, answer) == "right"

    def require(self) -> None:
        """Check that everything the judge needs is there.

        Raises:
            UserError: if something is missing.
        """

    def verdict(self, completion: str, answer: str) -> str:
        """One of "right", "wrong", "no answer", "unparsable" and "timeout"."""
        verdict = self._judge(completion, answer)
        self.account[verdict] += 1
        return verdict

    def _judge(self, completion: str, answer: str) -> str:
        raise NotImplementedError
