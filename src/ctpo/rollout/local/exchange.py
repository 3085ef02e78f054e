"""Turns on their way to a partner, and answers on their way back, while other rows decode.

The partner works in a thread of its own. An answer is taken a fixed number of steps after its turn, or as soon as no
row can decode without one. So what is decoded together never depends on how fast the partner is, and a run that is
resumed has the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from threading import Lock
from types import TracebackType

from ctpo.rollout.turns import Answer, Partner, Patient, Turn


class Exchange:
    """The turns and answers of one batch of responses, which have numbers of their own there.

    Args:
        partner: answers.
        first: the number of the batch's first response in the whole `generate`.
        may_wait: whether rows may decode while others wait for their answers.
    """

    def __init__(self, partner: Partner, first: int, *, may_wait: bool) -> None:
        self._partner, self._first = partner, first
        self.patience = partner.patience if may_wait and isinstance(partner, Patient) else 0
        self.closing_characters, self.answers_ends = partner.closing_characters, partner.answers_ends
        self._lock = Lock()
        self._unread: list[Turn] = []
        self._answers: dict[int, Answer | None] = {}
        self._asked: deque[tuple[int, Sequence[Turn], Future[None] | None]] = deque()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._unread.clear()

    @property
    def waiting(self) -> bool:
        """Whether there are turns whose answers have not been taken."""
        return bool(self._asked)

    def listens_to(self, response: int) -> bool:
        """Whether the partner listens to this response of the batch."""
        return self._partner.listens_to(self._first + response)

    def ask(self, turns: Sequence[Turn], step: int) -> None:
        """Show the partner the turns that ended in this decoding step."""
        with self._lock:
            self._unread += turns
        future = None
        if self.patience:
            future = _thread().submit(self._work)
        else:
            self._work()
        self._asked.append((step, turns, future))

    def take(self, step: int, *, all_wait: bool) -> list[tuple[Turn, Answer | None]]:
        """The answers that are due in this step, with their turns. It waits until the partner has given them.

        Args:
            all_wait: whether no row can decode before it is answered. Then all answers are due.
        """
        due: list[Turn] = []
        while self._asked and (all_wait or self._asked[0][0] + self.patience <= step):
            _, turns, future = self._asked.popleft()
            if future is not None:
                future.result()
            due += turns
        return [(turn, self._answers.pop(turn.response)) for turn in due]

    def _work(self) -> None:
        """Answer all turns that have not been read. What was asked while the partner was busy is answered together."""
        with self._lock:
            turns, self._unread = self._unread, []
        if turns:
            shown = [replace(turn, response=self._first + turn.response) for turn in turns]
            answers = self._partner.answer(shown)
            self._answers.update({turn.response: answer for turn, answer in zip(turns, answers, strict=True)})


@cache
def _thread() -> ThreadPoolExecutor:
    """One thread in which partners answer. It lives as long as the process: Linux ends a sandbox's children with the
    thread that started them."""
    return ThreadPoolExecutor(1, thread_name_prefix="ctpo-partner")
