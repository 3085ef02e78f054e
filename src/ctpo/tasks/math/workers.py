"""The processes that compare answers (`worker.py`), seen from the process that asks."""

from __future__ import annotations

import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ctpo.errors import UserError
from ctpo.extras import require

Pair = tuple[str, str]
"""A reference answer and a given answer."""

LEAST_S = 0.05
"""The CPU time that an attempt gets at least. Ordinary answers take 1 to 30 ms."""
_SHARE = (
    1 / 3
)  # of the time that is left for each open question: the other questions' next attempts need some too
_RETRIES = 2  # of a question whose process was killed from outside
_WORKER = Path(__file__).with_name("worker.py")
_START_S = 120.0  # importing sympy on a busy machine
_STARTS = 5
_LONGEST = 1 << 15  # bytes; a pipe takes two such questions, so writing one does not wait
_CERTAIN = ("right", "wrong", "unparsable")
_identities = itertools.count()


@dataclass(eq=False)
class Question:
    """A pair to compare, and what came of it so far."""

    pair: Pair
    verdict: str = "timeout"
    answered: bool = False
    certain: bool = False
    """Whether the same would come of it again."""
    allowed_s: float = 0.0
    """The CPU time of the last attempt."""
    deaths: int = 0


class Worker:
    """One process, with the question that it is answering.

    Raises:
        OSError: if it cannot be started now, for example without descriptors.
    """

    def __init__(self) -> None:
        # With a session of its own, the terminal's Ctrl-C does not reach it, and its child can be killed with it.
        self.process = subprocess.Popen(
            [sys.executable, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._questions, self.answers = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.ready = False
        self.question: Question | None = None
        self.overdue = time.monotonic() + _START_S
        self._identity = -1
        self._held = b""

    def ask(self, question: Question, seconds: float) -> None:
        """Send a question, which may use so many seconds of CPU time.

        Raises:
            OSError: if the process is dead.
        """
        self.question, self._identity = question, next(_identities)
        question.allowed_s = seconds
        # The process may be waiting for a core, or it may be stopped.
        self.overdue = time.monotonic() + 4 * seconds + 5
        line = json.dumps([self._identity, seconds, *question.pair]).encode() + b"\n"
        if len(line) > _LONGEST:
            self._close("unparsable", certain=True)
            return
        while line:
            line = line[os.write(self._questions, line) :]

    def hear(self) -> Question | None:
        """Read what the process has written. Returns a question that must be asked again, if there is one.

        Raises:
            EOFError: if the process is dead.
        """
        data = os.read(self.answers, 1 << 16)
        if not data:
            raise EOFError
        *lines, self._held = (self._held + data).split(b"\n")
        again = None
        for line in lines:
            first, _, rest = line.decode().partition(" ")
            if first == "ready":
                self.ready = True
            elif first == "died":
                by, begun = map(int, rest.split())
                if begun != self._identity:
                    # At a question that was given up before. It may have read this one, so this one is asked again.
                    again, self.question = self.question or again, None
                elif by == signal.SIGPROF:
                    self._close("timeout", answered=False)
                else:
                    again = self.lost() or again
            elif first == str(self._identity) and self.question is not None:
                failed = rest not in _CERTAIN
                self._close("unparsable" if failed else rest, certain=not failed)
        return again

    def lost(self) -> Question | None:
        """The process that had the question was killed. Returns the question if it should be asked again."""
        question, self.question = self.question, None
        if question is None:
            return None
        question.deaths += 1
        if question.deaths <= _RETRIES:
            return question
        question.verdict, question.answered = "unparsable", True
        return None

    def give_up(self) -> None:
        """Leave the question without an answer. If one comes after all, it is not taken."""
        if self.question is not None:
            self._close("timeout", answered=False)
            self.process.send_signal(signal.SIGUSR1)

    def _close(self, verdict: str, *, answered: bool = True, certain: bool = False) -> None:
        question, self.question = self.question, None
        if question is not None:
            question.verdict, question.answered, question.certain = verdict, answered, certain

    def end(self) -> None:
        """End the process and its child."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close our ends of the pipes."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def start(workers: list[Worker], count: int) -> None:
    """Start as many workers as are missing, and wait until all are ready.

    Raises:
        UserError: if math-verify is not installed, or a worker does not start.
    """
    for worker in [each for each in workers if each.process.poll() is not None]:
        worker.end()
        workers.remove(worker)
    if len(workers) < count:
        require("checking mathematical answers", "math", "math_verify")
    for attempt in range(_STARTS):
        try:
            while len(workers) < count:
                workers.append(Worker())
            for worker in workers:
                _wait_until_ready(worker)
            return
        except (OSError, EOFError):
            for worker in [each for each in workers if not each.ready]:
                worker.end()
                workers.remove(worker)
            if workers:  # fewer will do
                return
            time.sleep(0.2 * 2**attempt)
    raise UserError(
        f"the process that compares mathematical answers does not start; run `{sys.executable} {_WORKER}` to see why"
    )


def _wait_until_ready(worker: Worker) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(worker.answers, selectors.EVENT_READ)
        while not worker.ready:
            if not selector.select(max(0.0, worker.overdue - time.monotonic())):
                raise EOFError
            worker.hear()


def ask_all(workers: list[Worker], questions: Sequence[Question], limit_s: float, budget_s: float) -> None:
    """Give each question its verdict. Questions left without an answer are a "timeout".

    Every question first gets a short attempt. Then those without an answer get longer ones, as the budget allows.

    Args:
        workers: those that are ready. One that has to be replaced is replaced in the list.
        limit_s: the CPU time of one attempt at most.
        budget_s: the wall-clock time of all questions together.
    """
    deadline = time.monotonic() + budget_s
    left = list(questions)
    while left and time.monotonic() < deadline:
        with selectors.DefaultSelector() as selector:
            _Round(workers, selector, left, limit_s, deadline).run()
        # Another attempt is worth its time only if it is longer than the one before.
        left = [each for each in left if not each.answered]
        longer = _allowed_s(deadline, len(workers), len(left), limit_s)
        left = [each for each in left if longer >= 1.5 * each.allowed_s]


def _allowed_s(deadline: float, workers: int, questions: int, limit_s: float) -> float:
    left = max(0.0, deadline - time.monotonic()) * workers / max(questions, 1)
    return min(limit_s, max(LEAST_S, _SHARE * left))


class _Round:
    """One attempt at each question."""

    def __init__(
        self,
        workers: list[Worker],
        selector: selectors.BaseSelector,
        questions: Sequence[Question],
        limit_s: float,
        deadline: float,
    ) -> None:
        self.workers, self.selector = workers, selector
        self.waiting = deque(questions)
        self.limit_s, self.deadline = limit_s, deadline
        for worker in workers:
            selector.register(worker.answers, selectors.EVENT_READ, worker)

    def run(self) -> None:
        """Ask until every question has had its attempt, or until the deadline."""
        while self.waiting or any(worker.question for worker in self.workers):
            if time.monotonic() >= self.deadline:
                break
            for worker in list(self.workers):
                if self.waiting and worker.ready and worker.question is None:
                    self._ask(worker, self.waiting.popleft())
            soonest = min([self.deadline, *(w.overdue for w in self.workers if w.question or not w.ready)])
            for key, _ in self.selector.select(max(0.0, soonest - time.monotonic())):
                self._hear(key.data)
            for worker in list(self.workers):
                if (worker.question or not worker.ready) and time.monotonic() > worker.overdue:
                    worker.give_up()
                    self._replace(worker)
        for worker in self.workers:
            worker.give_up()

    def _ask(self, worker: Worker, question: Question) -> None:
        busy = sum(each.question is not None for each in self.workers)
        questions = len(self.waiting) + busy + 1
        try:
            worker.ask(question, _allowed_s(self.deadline, len(self.workers), questions, self.limit_s))
        except OSError:  # the process was killed since its last answer, which is not the question's fault
            worker.question = None
            self.waiting.appendleft(question)
            self._replace(worker)

    def _hear(self, worker: Worker) -> None:
        try:
            again = worker.hear()
        except EOFError:
            again = worker.lost()
            self._replace(worker)
        if again is not None:
            self.waiting.appendleft(again)

    def _replace(self, worker: Worker) -> None:
        self.selector.unregister(worker.answers)
        self.workers.remove(worker)
        worker.end()
        try:
            replacement = Worker()
        except OSError:  # for example without descriptors
            if self.workers:
                return
            start(self.workers, 1)
            replacement = self.workers.pop()
        self.workers.append(replacement)
        self.selector.register(replacement.answers, selectors.EVENT_READ, replacement)
