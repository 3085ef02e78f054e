"""Functions that a model calls: together, each with its limit, whatever they do."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ctpo.rollout import calling
from ctpo.rollout.calling import FunctionCall, FunctionCaller
from ctpo.tasks.functions import FunctionTool

RELEASE = threading.Event()


def double(number: int) -> int:
    """Double a number.

    Args:
        number: the number
    """
    return 2 * number


def meet(number: int) -> str:
    """Wait for other calls.

    Args:
        number: of this call
    """
    return str(MEETING.wait())


async def ameet(number: int) -> str:
    """Wait for other calls.

    Args:
        number: of this call
    """
    ARRIVED.append(number)
    while len(ARRIVED) < 50:
        await asyncio.sleep(0.005)
    return f"one of {len(ARRIVED)}"


def hang(number: int) -> int:
    """Never return before the test ends.

    Args:
        number: anything
    """
    RELEASE.wait(30)
    return number


async def ahang(number: int) -> int:
    """Never return, and refuse to be cancelled at first.

    Args:
        number: anything
    """
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        await asyncio.sleep(30)
    return number


async def block(number: int) -> int:
    """Block the event loop.

    Args:
        number: anything
    """
    RELEASE.wait(30)
    return number


def explode(kind: str) -> str:
    """Raise an error.

    Args:
        kind: which one
    """
    raise {"value": ValueError("no such city"), "exit": SystemExit(3), "odd": Odd()}[kind]


async def aexplode(kind: str) -> str:
    """Raise an error.

    Args:
        kind: which one
    """
    return explode(kind)


class Odd(Exception):
    """An error that cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError("never")


@functools.wraps(double)
def late_double(**arguments: Any) -> Any:
    """A wrapper that returns a coroutine and does not say so."""

    async def run() -> int:
        return double(**arguments)

    return run()


MEETING = threading.Barrier(calling.THREADS, timeout=20)
ARRIVED: list[int] = []


@pytest.fixture(autouse=True)
def release() -> Any:
    RELEASE.clear()
    yield
    RELEASE.set()


def calls(function: Callable[..., Any], values: list[Any], **settings: Any) -> list[FunctionCall]:
    tool = FunctionTool(function, **settings)
    (name,) = tool.schema["function"]["parameters"]["properties"]
    return [FunctionCall(tool=tool, arguments={name: value}) for value in values]


def test_calls_of_every_kind_run_together_and_keep_their_order() -> None:
    """The functions of both kinds return only when all of their kind have been called."""
    ARRIVED.clear()
    together = [*calls(meet, list(range(calling.THREADS))), *calls(ameet, list(range(50)))]
    with FunctionCaller() as caller:
        outcomes = caller.run([*together, *calls(double, list(range(500))), *calls(late_double, [4])])
    assert {outcome.status for outcome in outcomes} == {"ok"}
    assert sorted(int(each.text) for each in outcomes[: calling.THREADS]) == list(range(calling.THREADS))
    assert [each.text for each in outcomes[calling.THREADS : len(together)]] == ["one of 50"] * 50
    assert [each.text for each in outcomes[len(together) :]] == [str(2 * i) for i in range(500)] + ["8"]


def test_a_call_out_of_time_is_given_up_and_others_take_its_place() -> None:
    more = calling.THREADS + 3
    hanging = [*calls(hang, list(range(more)), timeout_s=0.1), *calls(ahang, [1, 2], timeout_s=0.1)]
    with FunctionCaller() as caller:
        outcomes = caller.run([*hanging, *calls(double, [1, 2, 3])])
        assert [each.status for each in outcomes] == ["timeout"] * (more + 2) + ["ok"] * 3
        assert outcomes[0].text == "[timeout: hang gave no result in 0.1 seconds]"
        assert [each.text for each in outcomes[-3:]] == ["2", "4", "6"]
        ours = [each for each in threading.enumerate() if each.name in ("ctpo-tool", "ctpo-coroutines")]
        assert len(ours) > more  # those that hang, and the event loop
        assert all(each.daemon for each in ours)  # none keeps the program from ending


def test_threads_that_hang_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "GIVEN_UP", 3)
    monkeypatch.setattr(calling, "THREADS", 2)
    before = threading.active_count()
    with FunctionCaller() as caller:
        outcomes = caller.run(calls(hang, list(range(20)), timeout_s=0.05))
        assert [each.status for each in outcomes] == ["timeout"] * 20
        assert threading.active_count() - before <= 3 + 2
        assert outcomes[-1].text == "[timeout: hang was not called, because 3 earlier calls hang]"
        assert caller.run(calls(double, [1]))[0].status == "timeout"
        with caller.start(calls(double, [5])) as late:  # it finds no thread
            RELEASE.set()  # the functions return, and calls are made again
            time.sleep(0.1)
            assert [each.text for each in late.outcomes()] == ["10"]
        deadline = time.monotonic() + 10
        while caller.run(calls(double, [1]))[0].status != "ok":
            assert time.monotonic() < deadline


def test_a_coroutine_that_blocks_the_event_loop_ends_no_later_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "_GRACE_S", 0.2)
    ARRIVED[:] = range(49)
    with FunctionCaller() as caller:
        assert [each.status for each in caller.run(calls(block, [1], timeout_s=0.1))] == ["timeout"]
        assert [each.status for each in caller.run(calls(ameet, [49]))] == ["ok"]


@pytest.mark.parametrize("function", [explode, aexplode])
def test_the_model_is_told_what_a_function_raises_and_the_user_where(function: Callable[..., Any]) -> None:
    with FunctionCaller() as caller:
        with pytest.warns(
            UserWarning, match=r"tool a?explode \(.*test_calling.py line \d+\) raises ValueError"
        ) as seen:
            outcomes = caller.run(calls(function, ["value", "exit", "odd", "other"]))
        assert len(seen) == 1  # once per tool
    ending = f"\n[error: {function.__name__} failed]"
    assert [each.status for each in outcomes] == ["error"] * 4
    assert [each.text.removesuffix(ending) for each in outcomes] == [
        "ValueError: no such city",
        "SystemExit: 3",
        "Odd",
        "KeyError: 'other'",
    ]


def test_ctrl_c_in_a_function_stops_everything() -> None:
    def stop(number: int) -> None:
        """Stop.

        Args:
            number: anything
        """
        raise KeyboardInterrupt

    with FunctionCaller() as caller, pytest.raises(KeyboardInterrupt):
        caller.run([*calls(hang, [1]), *calls(stop, [1])])


def test_coroutines_share_one_event_loop_from_batch_to_batch() -> None:
    """A client of HTTP that a tool has opened belongs to its loop, and would fail on another."""
    loops = []

    async def remember(number: int) -> int:
        """Remember the loop.

        Args:
            number: anything
        """
        loops.append(asyncio.get_running_loop())
        return number

    with FunctionCaller() as caller:
        for i in range(2):
            caller.run(calls(remember, [i]))
        assert loops[0] is loops[1]
    deadline = time.monotonic() + 10
    while not loops[0].is_closed():
        assert time.monotonic() < deadline
