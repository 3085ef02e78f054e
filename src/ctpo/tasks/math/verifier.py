"""`math-verify` behind a pipe, so that no expression can hang or crash the caller.

Its own time limits use SIGALRM: they work in a main thread only, and not inside a long C call. A process of its
own can be killed from any thread, and its memory is bounded.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path

from ctpo.extras import require

_WORKER = Path(__file__).with_name("worker.py")
_START_S = 120.0  # importing sympy on a busy machine
_REMEMBERED = 50_000


class Verifier:
    """Compares pairs of answers, one at a time.

    Args:
        limit_s: seconds a pair may take; then the process is killed and the verdict is "timeout".
    """

    def __init__(self, limit_s: float = 5.0) -> None:
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    def compare(self, reference: str, given: str) -> str:
        """Return "right", "wrong", "unparsable" or "timeout".

        Raises:
            UserError: if math-verify is not installed.
        """
        with self._lock:
            pair = (reference, given)
            if pair not in self._known:
                self._known[pair] = self._ask(json.dumps(pair))
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            return self._known[pair]

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        process, self._process = self._process, None
        if process is not None and self._pid == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _ask(self, line: str) -> str:
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            verdict = self._answer(process, self.limit_s)
        except OSError:  # the worker died between two questions
            verdict = None
        if verdict is None:
            self.close()
        # A worker that died at this pair (out of memory, a crash in C) could not read it either.
        return verdict or "unparsable"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._pid != os.getpid():
            require("checking mathematical answers", "math", "math_verify")
            self._pid = os.getpid()  # after a fork, the parent's process is the parent's
            self._process = subprocess.Popen(
                [sys.executable, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            self._answer(self._process, _START_S)
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], limit_s: float) -> str | None:
        """The worker's next line; "timeout" after killing it; None if it died."""
        assert process.stdout is not None
        deadline = time.monotonic() + limit_s
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close()
                    return "timeout"
                read = os.read(process.stdout.fileno(), 4096)
                if not read:
                    return None
                line += read
        return line.decode().strip()


_shared: Verifier | None = None


def shared_verifier() -> Verifier:
    """The one verifier of this process, started at its first use."""
    global _shared
    if _shared is None:
        _shared = Verifier()
        atexit.register(_shared.close)  # a worker in the middle of a hopeless expression outlives its pipe
    return _shared
