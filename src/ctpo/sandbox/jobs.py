"""Programs on their way through the pool, and what is made of their end."""

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
    """One program on its way through the pool."""

    batch: Batch
    index: int
    program: bytes
    kind: str
    attempts: int = 0


@dataclass(eq=False)
class Batch:
    """The programs of one call, and the results that are in so far."""

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
    """The result of a child that was reaped.

    Args:
        child: with its output read to the end.
        ended: how the zygote saw it end.
        wall_s: seconds from handing the program over.
        over: whether it wrote more than it may.
        limit: bytes kept of stdout, and of stderr.
    Returns:
        The result; `lost` for a child that something other than the sandbox killed.
    """
    status = _status(child, ended, over)
    stdout = child.output[:limit].decode("utf-8", "replace")
    stderr = child.errors[:limit].decode("utf-8", "replace")
    if status == "error" and (death := describe_death(ended.status)) is not None:
        stderr += f"{death}\n"
    return SandboxResult(status, stdout, stderr, wall_s, ended.cpu_s)


def _status(child: Child, ended: Exit, over: bool) -> Status:
    status = ended.status
    if child.verdict is not None:
        return child.verdict
    if over:
        return "output_limit"
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) in (_SIGKILL, _SIGXCPU) and ended.cpu_s >= child.cpu_limit_s:
            return "timeout"  # RLIMIT_CPU was faster than the clock
        return "lost" if os.WTERMSIG(status) == _SIGKILL else "error"
    code = os.WEXITSTATUS(status)
    if code == EXIT_SETUP:
        return "lost"
    if code == EXIT_MEMORY:
        return "memory"
    return "ok" if code == 0 else "error"
