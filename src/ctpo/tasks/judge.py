"""The base of all judges of answers: a word for each verdict, and a count of the verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


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
        return self.verdicts([completion], [answer])[0]

    def verdicts(self, completions: Sequence[str], answers: Sequence[str]) -> list[str]:
        """One verdict for each completion. A batch shares one budget of time, so it is faster than one by one.

        Args:
            completions: the texts to judge.
            answers: the reference answer of each.
        """
        verdicts = self._judge(list(zip(completions, answers, strict=True)))
        self.account.update(verdicts)
        return verdicts

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """The verdict on each pair of a completion and its reference answer."""
        raise NotImplementedError
