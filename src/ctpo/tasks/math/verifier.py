"""`math-verify` in a process of its own, so that no expression can hang or crash the caller.

The time limits of `math-verify` use SIGALRM, which works in a main thread only and not during a long C call. A process
can be killed from any thread, and its memory is limited.
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
from collections.abc import Sequence
from pathlib import Path

from ctpo.extras import require

_WORKER = Path(__file__).with_name("worker.py")
_START_S = 120.0  # importing sympy on a busy machine
_REMEMBERED = 50_000


class Verifier:
    """Compares pairs of answers, one at a time, and remembers the verdicts.

    Args:
        limit_s: how many seconds one pair may take. Then the process is killed and the verdict is "timeout".
    """

    def __init__(self, limit_s: float = 5.0) -> None:
        self.limit_s = limit_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    def compare_all(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """The verdict of `compare` on each pair."""
        return [self.compare(reference, given) for reference, given in pairs]

    def compare(self, reference: str, given: str) -> str:
        """One of "right", "wrong", "unparsable" and "timeout".

        Raises:
            UserError: if math-verify is not installed.
        """
        with self._lock:
            pair = (reference, given)
            if pair not in self._known:
                self._known[pair] = self._request(json.dumps(pair))
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            return self._known[pair]

    def close(self) -> None:
        """End the process. The next comparison starts another."""
        process, self._process = self._process, None
        if process is not None and self._pid == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _request(self, line: str) -> str:
        try:
            process = self._running()
            assert process.stdin is not None
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            verdict = self._answer(process, self.limit_s)
        except OSError:  # the worker died between two requests
            verdict = None
        if verdict is None:
            self.close()
        # If the worker died at this pair (out of memory, or a crash in C), it could not parse it either.
        return verdict or "unparsable"

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._pid != os.getpid():
            require("checking mathematical answers", "math", "math_verify")
            self._pid = os.getpid()  # after a fork, the parent's process cannot be used
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
        """The worker's next line; "timeout" if it had to be killed; None if it died."""
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
    """The verifier that this process shares. Its first comparison starts it."""
    global _shared
    if _shared is None:
        _shared = Verifier()
        atexit.register(
            _shared.close
        )  # during a long comparison, the worker would not notice the end of its pipe
    return _shared
