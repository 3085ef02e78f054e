"""Calls of Python functions that run together, each with its time limit.

Coroutines run on one event loop, other functions in threads. Neither can be stopped from outside: a call that is out of
time is given up, which means that nobody waits for it any longer. All threads here are daemons, so none of them keeps
the program from ending.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ctpo.errors import one_line
from ctpo.rollout.background import BackgroundLoop
from ctpo.tasks.functions import FunctionTool, describe
from ctpo.tasks.guard import place_of
from ctpo.tasks.tool import SUCCESS

THREADS: Final = 32
"""The largest number of functions that run at the same time."""
COROUTINES: Final = 256
"""The largest number of coroutines that run at the same time."""
GIVEN_UP: Final = 128
"""The largest number of threads that may still run calls which were given up. Then no further function is called."""
_GRACE_S: Final = 2.0
"""How long the event loop may fail to end calls that are out of time. Then one of them blocks it."""


@dataclass(frozen=True, kw_only=True)
class FunctionCall:
    """One call to be made."""

    tool: FunctionTool
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended, and the text that the model reads."""

    status: str
    """ok, error or timeout."""
    text: str
    seconds: float = 0.0
    """The wall-clock time that the function took."""


class FunctionCaller:
    """Makes calls of functions, many at a time.

    Example:
        with FunctionCaller() as caller, caller.start([FunctionCall(tool=tool, arguments={"query": "tea"})]) as batch:
            outcomes = batch.outcomes()
    """

    def __init__(self) -> None:
        self.loop = BackgroundLoop("ctpo-coroutines")
        """Where all coroutines run; a client that one of them opened stays usable for the others."""
        self._given_up: list[threading.Thread] = []
        self._warned: set[str] = set()

    def __enter__(self) -> FunctionCaller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs on the event loop, and end the loop. Functions in threads go on."""
        self.loop.leave()

    def start(self, calls: Sequence[FunctionCall]) -> Batch:
        """Start these calls. They run while the caller does something else, and until its `with` block ends."""
        return Batch(self, calls)

    def run(self, calls: Sequence[FunctionCall]) -> list[Outcome]:
        """The outcomes of these calls, in their order."""
        with self.start(calls) as batch:
            return batch.outcomes()

    def leave_loop(self) -> None:
        """Use a new event loop from now on, because a call blocks the present one."""
        thread = self.loop.leave()
        assert thread is not None
        self.give_up(thread)

    def give_up(self, thread: threading.Thread) -> None:
        """Note a thread whose call is out of time."""
        self._given_up.append(thread)

    def may_call(self) -> bool:
        """Whether few enough threads are held by calls that were given up."""
        self._given_up = [thread for thread in self._given_up if thread.is_alive()]
        return len(self._given_up) < GIVEN_UP

    def warn(self, tool: FunctionTool, error: BaseException) -> None:
        """Tell the user of a function that raises, once per tool: only the model reads of it otherwise."""
        if tool.name not in self._warned:
            self._warned.add(tool.name)
            known = place_of(error)
            place = f" ({known})" if known else ""
            warnings.warn(
                f"tool {tool.name}{place} raises {one_line(describe(error))[:200]}; the model reads this, and "
                "further errors of this tool are only counted",
                stacklevel=2,
            )


class Batch:
    """Calls that were started together. Leaving its `with` block starts no more of them and cancels coroutines."""

    def __init__(self, caller: FunctionCaller, calls: Sequence[FunctionCall]) -> None:
        self._caller, self._calls = caller, list(calls)
        self._outcomes: list[Outcome | None] = [None] * len(calls)
        self._changed = threading.Condition()
        self._waiting: deque[int] = deque(i for i, call in enumerate(calls) if not call.tool.is_async)
        self._running: dict[int, tuple[float, threading.Thread]] = {}
        self._errors: list[tuple[FunctionTool, BaseException]] = []
        self._interrupt: BaseException | None = None
        self._shortest_s = min((call.tool.timeout_s for call in calls), default=math.inf)
        self._workers = 0
        """Threads of this batch that still take calls."""
        with self._changed:
            self._start_workers()
        awaited = [i for i, call in enumerate(calls) if call.tool.is_async]
        self._awaited = caller.loop.run(self._await(awaited)) if awaited else None
        rounds = math.ceil(len(awaited) / COROUTINES)
        self._loop_limit_s = rounds * max((calls[i].tool.timeout_s for i in awaited), default=0.0) + _GRACE_S

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._waiting.clear()
        if self._awaited is not None:
            self._awaited.cancel()

    def outcomes(self) -> list[Outcome]:
        """How each call ended, in order. It waits until every call has ended or is out of time.

        Raises:
            KeyboardInterrupt: if one of the functions raised it.
        """
        with self._changed:
            while (self._waiting or self._running) and self._interrupt is None:
                self._changed.wait(self._give_up_late_calls())
        if self._awaited is not None and self._interrupt is None:
            self._wait_for_loop()
        if self._interrupt is not None:
            raise self._interrupt
        for tool, error in self._errors:
            self._caller.warn(tool, error)
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _start_workers(self) -> None:
        """Start as many threads as there are calls for, unless too many hang."""
        for _ in range(min(THREADS, len(self._waiting) + len(self._running)) - self._workers):
            if self._caller.may_call():
                self._workers += 1
                threading.Thread(target=self._work, name="ctpo-tool", daemon=True).start()

    def _work(self) -> None:
        """Make waiting calls, one after the other."""
        while True:
            with self._changed:
                if not self._waiting:
                    self._workers -= 1
                    return
                i = self._waiting.popleft()
                self._running[i] = (time.monotonic(), threading.current_thread())
            outcome = self._perform(self._calls[i])
            with self._changed:
                if self._running.pop(i, None) is None:
                    return  # the call was given up, and another thread has taken this one's place
                self._outcomes[i] = outcome
                self._changed.notify()

    def _perform(self, call: FunctionCall) -> Outcome:
        started = time.monotonic()
        try:
            value = call.tool.function(**call.arguments)
            if inspect.iscoroutine(value):  # of a wrapper that is not declared as a coroutine function
                value = asyncio.run(value)
            return self._ended(call.tool, value, started)
        except BaseException as error:
            return self._failed(call.tool, error, started)

    async def _await(self, indices: Sequence[int]) -> None:
        """Make calls of coroutines, all at the same time."""
        room = asyncio.Semaphore(COROUTINES)

        async def make(i: int) -> None:
            call = self._calls[i]
            async with room:
                task = asyncio.ensure_future(self._perform_async(call))
                try:
                    await asyncio.wait({task}, timeout=call.tool.timeout_s)
                finally:
                    task.cancel()  # without effect on a task that is done
            self._outcomes[i] = task.result() if task.done() else _late(call.tool)

        await asyncio.gather(*map(make, indices))

    async def _perform_async(self, call: FunctionCall) -> Outcome:
        started = time.monotonic()
        try:
            return self._ended(call.tool, await call.tool.function(**call.arguments), started)
        except BaseException as error:
            return self._failed(call.tool, error, started)

    def _ended(self, tool: FunctionTool, value: Any, started: float) -> Outcome:
        seconds = time.monotonic() - started
        if seconds > tool.timeout_s:  # whoever looks at the clock first, the limit is the same
            return _late(tool)
        return Outcome(status=SUCCESS, text=tool.result(value), seconds=seconds)

    def _failed(self, tool: FunctionTool, error: BaseException, started: float) -> Outcome:
        seconds = time.monotonic() - started
        if isinstance(error, KeyboardInterrupt):
            with self._changed:
                self._interrupt = error
                self._changed.notify()
        if seconds > tool.timeout_s:
            return _late(tool)
        self._errors.append((tool, error))
        return Outcome(status="error", text=tool.failure(error), seconds=seconds)

    def _give_up_late_calls(self) -> float:
        """Give up the calls that are out of time. Returns in how many seconds the next one will be."""
        now, soonest = time.monotonic(), math.inf
        for i, (started, thread) in list(self._running.items()):
            tool = self._calls[i].tool
            left = started + tool.timeout_s - now
            soonest = min(soonest, left) if left > 0 else soonest
            if left <= 0:
                del self._running[i]
                self._outcomes[i] = _late(tool)
                self._caller.give_up(thread)
                self._workers -= 1
        self._start_workers()
        if self._waiting and not self._workers:
            for i in self._waiting:
                text = f"[timeout: {self._calls[i].tool.name} was not called, because {GIVEN_UP} earlier calls hang]"
                self._outcomes[i] = Outcome(status="timeout", text=text)
            self._waiting.clear()
            return 0.0
        return min(soonest, self._shortest_s, 1.0)

    def _wait_for_loop(self) -> None:
        """Wait for the coroutines. If one of them blocks the event loop, all that have not ended are given up."""
        assert self._awaited is not None
        try:
            self._awaited.result(self._loop_limit_s)
        except TimeoutError:
            self._caller.leave_loop()
            for i, call in enumerate(self._calls):
                if self._outcomes[i] is None:
                    self._outcomes[i] = _late(call.tool)


def _late(tool: FunctionTool) -> Outcome:
    return Outcome(status="timeout", text=tool.out_of_time(), seconds=tool.timeout_s)
