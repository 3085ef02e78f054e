"""Runs as a program that answers questions: one JSON line comes in, one line goes out.

`[id, seconds, reference, given]` is answered with `id verdict`. A verdict is what `symbolic.compare` returns, or
"failed" after an exception. "ready" is written once, before the first answer.

This process imports and warms up what comparisons need. Then it forks a child, and the child answers. So a child that
hangs, crashes or grows costs a fork of some milliseconds, and not a new start of a second. The kernel ends a child that
uses more CPU time than the question allows, and SIGUSR1 ends it at once. Then this process writes `died SIGNAL id`,
with the id of the last question that a child began, and forks another.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import mmap
import os
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

_MEMORY = 2 << 30  # bytes of address space
_ID = struct.Struct("q")
_WARM_UP = (  # each takes another way through sympy
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
    (r"\cos 2x", r"1-2\sin^2 x"),
    (r"\frac{(n+1)!}{n!}", "n+1"),
    (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} k"),
    (r"\frac{1}{3}", r"\int_0^1 x^2 dx"),
    (r"\sin 1", r"\sin 2 - 10^{-9}"),
    (r"\frac{1}{2}\ln(3+2\sqrt{2})", r"\ln(1+\sqrt{2})"),
)


def main() -> None:
    _reset_signals()
    answers = os.dup(1)
    os.dup2(2, 1)  # text that a library prints must not be taken for an answer
    logging.disable(logging.CRITICAL)
    sys.path[0] = str(Path(__file__).parents[3])  # the package's folder in place of this file's
    from ctpo.tasks.math.symbolic import compare

    for pair in _WARM_UP:
        with contextlib.suppress(Exception):
            compare(*pair)
    _limit_resources()
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.write(answers, b"ready\n")
    begun = mmap.mmap(-1, _ID.size)  # shared with the children
    _ID.pack_into(begun, 0, -1)
    while (status := _child_status(lambda: _answer(compare, answers, begun))) != 0:
        if os.WIFSIGNALED(status):
            os.write(answers, b"died %d %d\n" % (os.WTERMSIG(status), *_ID.unpack_from(begun)))


def _reset_signals() -> None:
    """Forget which signals the host ignores or blocks. They are inherited, and the time limit and `wait` need two."""
    for number in (signal.SIGCHLD, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _child_status(run: Callable[[], NoReturn]) -> int:
    """How a child that runs this function ended, as `os.wait` says. If the questions end first, it is killed: 0."""
    alive, held = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(alive)
        _die_with(parent)
        run()
    os.close(held)  # now the child alone holds it, so its end is the end of the pipe
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(child, signal.SIGKILL))
    watch = select.poll()
    watch.register(alive, select.POLLIN)
    watch.register(0, 0)  # only whether the other side is gone: the child reads the questions
    gone = [fd for fd, _ in watch.poll()] == [0]
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.close(alive)
    if gone:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return 0 if gone else status


def _answer(compare: Callable[[str, str], str], answers: int, begun: mmap.mmap) -> NoReturn:
    """Answer questions until there are no more. An exception ends this child with exit code 1, after the answer."""
    code = 0
    for line in _lines():
        try:
            identity, seconds, reference, given = json.loads(line)
        except ValueError:  # the rest of a question whose first part a killed child has read
            continue
        _ID.pack_into(begun, 0, identity)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal is not handled, so it ends this process
        try:
            verdict: str = compare(reference, given)
        except BaseException:
            verdict, code = "failed", 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(answers, f"{identity} {verdict}\n".encode())
        if code:
            break
    os._exit(code)


def _lines() -> Iterator[bytes]:
    """The last line of stdin at each time. Those before it have been given up, or the last would not have been sent."""
    held = b""
    while data := os.read(0, 1 << 16):
        *lines, held = (held + data).split(b"\n")
        yield from lines[-1:]


def _limit_resources() -> None:
    """Limit memory and descriptors, and forbid files to be written. Some systems do not have all of these limits."""
    with contextlib.suppress(ImportError):
        import resource

        for name, bound in (("AS", _MEMORY), ("NOFILE", 64), ("FSIZE", 0), ("CORE", 0)):
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (bound, bound))


def _die_with(parent: int) -> None:
    """On Linux, be killed when the parent dies, even if it was killed itself."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)


if __name__ == "__main__":
    main()
