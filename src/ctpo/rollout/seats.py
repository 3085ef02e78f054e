"""Environments that take their steps at the same time, each in a thread of its own or on one event loop."""

from __future__ import annotations

import inspect
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ctpo.errors import UserError
from ctpo.rollout.background import BackgroundLoop
from ctpo.tasks.environment import Environment, EnvironmentFactory, check_environment, made_wrong


class OutOfTime(Exception):
    """A method of an environment did not return in time."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A method of an environment to call."""

    seat: Seat
    method: str
    arguments: tuple[Any, ...] = ()


class Seat:
    """One environment, and the thread in which its methods run. Coroutines run on the loop that all seats share."""

    def __init__(self, environment: Environment, loop: BackgroundLoop) -> None:
        self.environment = environment
        self._loop = loop
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, method: str, arguments: tuple[Any, ...]) -> Future[Any]:
        """Begin a call of a method of the environment. An awaitable that it returns is awaited."""
        function = getattr(self.environment, method)
        if inspect.iscoroutinefunction(function):
            return self._loop.run(function(*arguments))
        future: Future[Any] = Future()

        def work() -> None:
            try:
                value = function(*arguments)
                if inspect.isawaitable(value):
                    inner = self._loop.run(value)
                    future.add_done_callback(lambda outer: outer.cancelled() and inner.cancel())
                    value = inner.result()
                _settle(future, value, None)
            except (
                BaseException
            ) as error:  # SystemExit too: it goes to who waits, and must not end the thread
                _settle(future, None, error)

        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ctpo-environment", daemon=True)
            self._thread.start()
        self._work.put(work)
        return future

    def leave(self) -> None:
        """End the thread after the call that it is in."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def _settle(future: Future[Any], value: Any, error: BaseException | None) -> None:
    """Give a call's outcome to who waits, unless that was given up."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)


class Seats:
    """Environments of one kind, which are made when they are needed and used again.

    Args:
        factory: makes an environment.
    """

    def __init__(self, factory: EnvironmentFactory) -> None:
        self._factory = factory
        self._loop = BackgroundLoop("ctpo-environments")
        self._free: list[Seat] = []

    def take(self, count: int) -> list[Seat]:
        """So many seats, which are taken until `give_back`."""
        taken = self._free[:count]
        del self._free[:count]
        return taken + [self._make() for _ in range(count - len(taken))]

    def _make(self) -> Seat:
        try:
            environment = self._factory()
        except UserError:
            raise
        except Exception as error:
            raise made_wrong(self._factory, error) from None
        check_environment(environment)
        return Seat(environment, self._loop)

    def give_back(self, seats: Sequence[Seat]) -> None:
        """Keep these seats for later. Those with a call that has not returned must not be among them."""
        self._free += seats

    def retire(self, seats: Sequence[Seat]) -> None:
        """Never use these seats again, because a call of them has not returned in time."""
        for seat in seats:
            seat.leave()
        if seats and self._loop.is_stuck():
            self._loop.leave()

    def close(self) -> None:
        """Call `close` of the environments that have it, and end all threads."""
        for seat in self._free:
            if callable(getattr(seat.environment, "close", None)):
                outcomes([Request(seat=seat, method="close")], timeout_s=5.0)
            seat.leave()
        self._free = []
        self._loop.leave()


def outcomes(requests: Sequence[Request], *, timeout_s: float) -> list[Any]:
    """What each call returns, or the exception that it raises. All calls run at the same time.

    Args:
        timeout_s: seconds from now. A call that has not returned by then gives `OutOfTime`. Its coroutine is cancelled;
            nothing can stop a function, which goes on in its thread.
    """
    deadline = time.monotonic() + timeout_s
    futures = [request.seat.call(request.method, request.arguments) for request in requests]
    return [_outcome(future, deadline) for future in futures]


def _outcome(future: Future[Any], deadline: float) -> Any:
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        if future.done():
            return future.exception() or future.result()
        future.cancel()
        return OutOfTime()
    except BaseException as error:
        if not future.done():
            raise  # the user's interrupt
        return error
