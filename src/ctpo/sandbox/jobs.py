"""Programs that the pool runs, and the results it makes of their ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ctpo.sandbox.inside.wire import EXIT_MEMORY, EXIT_SETUP
from ctpo.sandbox.result import SandboxResult, Status
from ctpo.sandbox.worker import Child, Exit, describe_death

_SIGKILL, _SIGXCPU = 9, 24


@dataclass(eq=False)
class Job:
    """One program that the pool is to run."""

    batch: Batch
    index: int
    program: bytes
    kind: str
    attempts: int = 0


@dataclass(eq=False)
class Batch:
    """The programs of one call of `Sandbox.run`, and their results so far."""

    timeout_s: float
    memory_bytes: int
    results: list[SandboxResult | None]
    on_done: Callable[[Batch], None]
    missing: int = 0
    failure: Exception | None = None
    cancelled: bool = False

    def put(self, index: int, result: SandboxResult) -> None:
        self.results[index] = result
        self.missing -= 1
        if self.missing == 0:
            self.on_done(self)

    def fail(self, failure: Exception) -> None:
        if self.missing > 0 and self.failure is None:
            self.failure = failure
            self.on_done(self)


def judge(child: Child, ended: Exit, wall_s: float, over: bool, limit: int) -> SandboxResult:
    """The result of a child that has ended. It is `lost` if something other than the sandbox killed the child.

    Args:
        child: the child, with its output read to the end.
        ended: how the zygote saw it end.
        wall_s: the seconds since the program was sent.
        over: whether it wrote more than it may.
        limit: how many bytes of stdout, and of stderr, are kept.
    """
    status = _status(child, ended, over)
    stdout = _as_text(child.output[:limit])
    stderr = _as_text(child.errors[:limit])
    if status == "error" and (death := describe_death(ended.status)) is not None:
        stderr += f"{death}\n"
    return SandboxResult(status, stdout, stderr, wall_s, ended.cpu_s)


def _as_text(output: bytes | bytearray) -> str:
    """The output as a file in text mode would read it: every end of a line is a line feed."""
    return output.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _status(child: Child, ended: Exit, over: bool) -> Status:
    status = ended.status
    if child.verdict is not None:
        return child.verdict
    if over:
        return "output_limit"
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in (_SIGKILL, _SIGXCPU) and ended.cpu_s >= child.cpu_limit_s:
            return "timeout"  # the limit of CPU time was reached before the wall-clock limit
        return "lost" if os.WTERMSIG(status) == _SIGKILL else "error"
    code = os.WEXITSTATUS(status)
    if code == EXIT_SETUP:
        return "lost"
    if code == EXIT_MEMORY:
        return "memory"
    return "ok" if code == 0 else "error"
