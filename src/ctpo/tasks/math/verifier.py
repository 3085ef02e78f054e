"""Comparing answers with computer algebra in other processes, so that no expression can hang or crash the caller.

Only certain verdicts are remembered: not a timeout, an exception, or what came of a process that was killed.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence

from ctpo.tasks.math.workers import Pair, Question, Worker, ask_all, start

_BATCH_S = 20.0
_MOST_WORKERS = 4
_REMEMBERED = 50_000


class Verifier:
    """Compares pairs of answers, several at a time, and remembers the verdicts that are certain.

    It may be used from several threads. After a fork, the parent goes on, and the child starts workers of its own.

    Args:
        limit_s: how many seconds of CPU time one pair may take.
        workers: how many pairs are compared at the same time; by default one per usable core, at most 4.
    """

    def __init__(self, limit_s: float = 3.0, workers: int | None = None) -> None:
        self.limit_s = limit_s
        self._most = workers
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        self._known: OrderedDict[Pair, str] = OrderedDict()
        _all.add(self)

    def compare(self, reference: str, given: str) -> str:
        """One of "right", "wrong", "unparsable" and "timeout".

        Raises:
            UserError: if math-verify is not installed, or its process does not start.
        """
        return self.compare_all([(reference, given)])[0]

    def compare_all(self, pairs: Sequence[Pair], budget_s: float = _BATCH_S) -> list[str]:
        """The verdict on each pair of a reference and a given answer.

        Every pair gets a short attempt first. What is left of the budget goes to the pairs that need longer. If it is
        not enough for a pair, the verdict is "timeout".

        Args:
            pairs: the answers. Equal pairs are compared once.
            budget_s: how many seconds of wall-clock time all pairs together may take, once the workers have started.

        Raises:
            UserError: if math-verify is not installed, or its process does not start.
        """
        with self._lock:
            verdicts = {pair: self._known[pair] for pair in pairs if pair in self._known}
            questions = [Question(pair) for pair in dict.fromkeys(pairs) if pair not in verdicts]
            if questions:
                self._answer(questions, budget_s)
            for question in questions:
                verdicts[question.pair] = question.verdict
                if question.certain:
                    self._known[question.pair] = question.verdict
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            return [verdicts[pair] for pair in pairs]

    def close(self) -> None:
        """End the processes. The next comparison starts others."""
        with self._lock:
            self._end_workers()

    def _answer(self, questions: Sequence[Question], budget_s: float) -> None:
        try:
            start(self._workers, min(self._most or _usual_workers(), len(questions)))
            ask_all(self._workers, questions, self.limit_s, budget_s)
        except BaseException:
            # An exception of a signal handler, such as Ctrl-C, can come anywhere. These may still owe an answer.
            for worker in list(self._workers):
                worker.give_up()
                if not worker.ready:
                    worker.end()
                    self._workers.remove(worker)
            raise

    def _end_workers(self) -> None:
        while self._workers:
            self._workers[-1].end()
            self._workers.pop()

    def _leave_to_parent(self) -> None:
        """In the child after a fork: use neither the parent's lock nor its workers."""
        self._lock = threading.Lock()
        for worker in self._workers:
            worker.process.returncode = 0  # they are not this process's children
            worker.close_pipes()
        self._workers = []

    @property
    def _process(self) -> subprocess.Popen[bytes] | None:
        """The first worker's process, if it has been started."""
        return self._workers[0].process if self._workers else None


def _usual_workers() -> int:
    from ctpo.sandbox.limits import usable_cores

    return min(_MOST_WORKERS, usable_cores())


_all: weakref.WeakSet[Verifier] = weakref.WeakSet()
_shared: Verifier | None = None


def shared_verifier() -> Verifier:
    """The verifier that this process shares. Its first comparison starts its workers."""
    global _shared
    if _shared is None:
        _shared = Verifier()
        atexit.register(_shared.close)
    return _shared


def _after_fork() -> None:
    for verifier in list(_all):
        verifier._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
