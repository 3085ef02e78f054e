"""Running the programs a batch of responses asks for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ctpo.errors import UserError
from ctpo.rollout.records import ToolCall
from ctpo.sandbox import Sandbox, SandboxResult, SandboxUnavailable
from ctpo.tasks import PythonTool, Task


class Runs(Protocol):
    """What is asked of a sandbox: programs in, results in the same order out."""

    def run(self, programs: list[str]) -> list[SandboxResult]: ...


class ToolRunner:
    """One tool, one sandbox, and the account of what running it cost.

    Programs never share anything: each runs in an interpreter of its own. Where the task declares its tool
    deterministic, programs of identical source within one batch are run once and share the answer.
    """

    def __init__(self, tool: PythonTool, sandbox: Runs) -> None:
        self.tool = tool
        self.sandbox = sandbox
        self.seconds = 0.0
        self.calls = 0
        self.failures = 0
        self.executed = 0
        self._known: dict[str, SandboxResult] = {}

    def start_batch(self) -> None:
        """Forget the answers of the batch before, and start a new account."""
        self._known.clear()
        self.seconds, self.calls, self.failures, self.executed = 0.0, 0, 0, 0

    def run(self, programs: Sequence[str]) -> list[ToolCall]:
        """Run these programs together; results in the same order."""
        started = time.perf_counter()
        results = self._results(programs)
        self.seconds += time.perf_counter() - started
        self.calls += len(programs)
        self.failures += sum(result.status != "ok" for result in results)
        return [self._call(program, result) for program, result in zip(programs, results, strict=True)]

    def _results(self, programs: Sequence[str]) -> list[SandboxResult]:
        if not self.tool.deterministic:
            self.executed += len(programs)
            return self.sandbox.run(list(programs))
        unknown = [program for program in dict.fromkeys(programs) if program not in self._known]
        if unknown:
            self._known.update(zip(unknown, self.sandbox.run(unknown), strict=True))
            self.executed += len(unknown)
        return [self._known[program] for program in programs]

    def _call(self, program: str, result: SandboxResult) -> ToolCall:
        output = self.tool.render(result.status, result.stdout, result.stderr)
        return ToolCall(program=program, status=result.status, output=output)


@contextmanager
def open_tools(
    task: Task, *, timeout_s: float = 3.0, memory_mb: int = 512, unsafe_no_isolation: bool = False
) -> Iterator[ToolRunner | None]:
    """A runner of the task's tool with a sandbox of its own; None for a task without a tool.

    Raises:
        UserError: where programs cannot be isolated and it was not said that they need not be.
    """
    if task.tool is None:
        yield None
        return
    try:
        sandbox = Sandbox(timeout_s=timeout_s, memory_mb=memory_mb, unsafe_no_isolation=unsafe_no_isolation)
    except SandboxUnavailable as error:
        raise UserError(str(error)) from None
    with sandbox:
        yield ToolRunner(task.tool, sandbox)
