"""Running the programs a batch of responses asks for."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout.chat import adapt_tool
from ctpo.rollout.records import ToolCall
from ctpo.sandbox import Sandbox, SandboxResult, SandboxUnavailable
from ctpo.tasks import PythonTool, Task

LASTING = ("ok", "error")  # timeout, memory, lost … may end otherwise next time
_REMEMBERED = 100_000  # answers; programs and outputs are short, so some tens of megabytes at most


class Runs(Protocol):
    """What is asked of a sandbox: programs in, results in the same order out."""

    def run(self, programs: list[str]) -> list[SandboxResult]: ...


class ToolRunner:
    """One tool, one sandbox, and the account of what running it cost.

    Programs never share anything: each runs in an interpreter of its own. Where the task declares its tool
    deterministic, a program whose source was run before is answered from memory, which is what running it
    again would give; only answers that do not depend on the machine's load (ok, error) are remembered.
    """

    def __init__(self, tool: PythonTool, sandbox: Runs) -> None:
        self._declared = tool
        self.tool = tool
        self.sandbox = sandbox
        self._known: OrderedDict[str, SandboxResult] = OrderedDict()
        self.reset_account()

    def adapt(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Call and answer as this tokenizer's chat template does, where the tool's style says so."""
        self.tool = adapt_tool(self._declared, tokenizer)

    def reset_account(self) -> None:
        """Start a new account: seconds spent, calls answered, failures among them, programs really run."""
        self.seconds, self.calls, self.failures, self.executed = 0.0, 0, 0, 0

    def run(self, programs: Sequence[str]) -> list[ToolCall]:
        """Run these programs together; results in the same order."""
        started = time.perf_counter()
        results = self._remembered(programs) if self.tool.deterministic else self._execute(list(programs))
        self.seconds += time.perf_counter() - started
        self.calls += len(programs)
        self.failures += sum(result.status != "ok" for result in results)
        return [self._call(program, result) for program, result in zip(programs, results, strict=True)]

    def _remembered(self, programs: Sequence[str]) -> list[SandboxResult]:
        distinct = dict.fromkeys(programs)
        answers = {program: self._known[program] for program in distinct if program in self._known}
        unknown = [program for program in distinct if program not in answers]
        answers.update(zip(unknown, self._execute(unknown), strict=True))
        self._remember(unknown, answers)
        return [answers[program] for program in programs]

    def _remember(self, programs: Sequence[str], answers: dict[str, SandboxResult]) -> None:
        for program in programs:
            if answers[program].status in LASTING:
                self._known[program] = answers[program]
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _execute(self, programs: list[str]) -> list[SandboxResult]:
        self.executed += len(programs)
        return self.sandbox.run(programs) if programs else []

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
