"""What judges of answers share: a word for each verdict, and an account of them."""

from __future__ import annotations

from collections import Counter


class Judge:
    """An `AnswerCheck` that also says why a completion is not right.

    A subclass gives `_judge`, which never raises on odd text.
    """

    def __init__(self) -> None:
        self.account: Counter[str] = Counter()
        """How often each verdict was given."""

    def __call__(self, completion: str, answer: str) -> bool:
        return self.verdict(completion, answer) == "right"

    def require(self) -> None:
        """Refuse where what it judges with is missing.

        Raises:
            UserError: if so.
        """

    def verdict(self, completion: str, answer: str) -> str:
        """Return "right", "wrong", "no answer", "unparsable" or "timeout"."""
        verdict = self._judge(completion, answer)
        self.account[verdict] += 1
        return verdict

    def _judge(self, completion: str, answer: str) -> str:
        raise NotImplementedError
