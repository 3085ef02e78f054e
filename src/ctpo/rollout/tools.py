"""Running the programs that a batch of responses calls."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout.chat import adapt_tool, called_program, encode_result
from ctpo.rollout.records import ToolCall
from ctpo.rollout.turns import Answer, Turn
from ctpo.sandbox import Sandbox, SandboxResult, SandboxUnavailable
from ctpo.tasks import PythonTool, Task

LASTING = ("ok", "error")  # other endings (timeout, memory, lost, …) may depend on the machine's load
_REMEMBERED = 100_000  # results; programs and outputs are short, so at most some tens of megabytes


class Runs(Protocol):
    """Anything that runs programs and returns their results in the same order, such as a `Sandbox`."""

    def run(self, programs: list[str]) -> list[SandboxResult]: ...


class ToolRunner:
    """Runs a tool's programs in a sandbox, and counts what they cost. It is the `Partner` of a task with a tool.

    Programs share nothing: each runs in an interpreter of its own. If the task declares its tool deterministic, a
    program that was run before is answered from memory, because running it again would give the same. Only results
    that do not depend on the machine's load (ok, error) are remembered.

    Attributes:
        tool: the tool with the tags of the model that `begin` was last called for.
        seconds, calls, failures, executed: since `reset_account`, the seconds spent, the calls answered, those of
            them that failed, and the programs that really ran.
    """

    def __init__(self, tool: PythonTool, sandbox: Runs) -> None:
        self._declared = tool
        self.tool = tool
        self.sandbox = sandbox
        self._known: OrderedDict[str, SandboxResult] = OrderedDict()
        self.reset_account()

    @property
    def closing_characters(self) -> str:
        """The characters of which one ends every call."""
        return self.tool.closing_characters

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts of which one stands at the end of every call."""
        return self.tool.stops

    @property
    def answers_ends(self) -> bool:
        """False: a call ends in the middle of a turn."""
        return False

    def begin(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> None:
        """Take the calls and results of this tokenizer's chat template, if the tool's style says so."""
        self.tool = adapt_tool(self._declared, tokenizer)
        self._tokenizer = tokenizer
        self._calls_left = [self.tool.max_calls] * len(prompts)

    def listens_to(self, response: int) -> bool:
        """Whether the response may make another call."""
        return self._calls_left[response] > 0

    def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
        """The output of the call at the end of each turn; None without one. All programs run together."""
        programs = [called_program(self._tokenizer, self.tool, turn.ids) for turn in turns]
        called = [at for at, program in enumerate(programs) if program is not None]
        answers: list[Answer | None] = [None] * len(turns)
        if called:
            calls = self.run([program for program in programs if program is not None])
            outputs = encode_result(self._tokenizer, self.tool, [call.output for call in calls])
            for at, call, ids in zip(called, calls, outputs, strict=True):
                answers[at] = Answer(ids=ids, calls=(call,))
                self._calls_left[turns[at].response] -= 1
        return answers

    def reset_account(self) -> None:
        """Set seconds, calls, failures and executed to 0."""
        self.seconds, self.calls, self.failures, self.executed = 0.0, 0, 0, 0

    def run(self, programs: Sequence[str]) -> list[ToolCall]:
        """The calls with their results, in the order of the programs, which run together."""
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
    """A context with a runner of the task's tool and a sandbox for it; the context is None if the task has no tool.

    Args:
        timeout_s: how many seconds a program may run.
        memory_mb: how many MiB of memory a program may use.
        unsafe_no_isolation: whether to run programs without isolation, so that they can do whatever this user can.

    Raises:
        UserError: if programs cannot be isolated and `unsafe_no_isolation` is not set.
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
