"""Running the tools that a batch of responses calls: programs in a sandbox, functions in this process."""

from __future__ import annotations

import json
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout.calling import FunctionCall, FunctionCaller
from ctpo.rollout.calls import Call, CallFormat, call_format
from ctpo.rollout.records import ToolCall
from ctpo.rollout.turns import PATIENCE, Answer, Turn
from ctpo.sandbox import Sandbox, SandboxResult, SandboxUnavailable
from ctpo.tasks import FunctionTool, PythonTool, Task
from ctpo.tasks.calls import FUNCTION
from ctpo.tasks.functions import UnusableArguments
from ctpo.tasks.task import Tool
from ctpo.tasks.tool import SUCCESS

LASTING = ("ok", "error")  # other endings (timeout, memory, lost, …) may depend on the machine's load
_REMEMBERED = 100_000  # results; programs and outputs are short, so at most some tens of megabytes


class Runs(Protocol):
    """Anything that runs programs and returns their results in the same order, such as a `Sandbox`."""

    def run(self, programs: list[str]) -> list[SandboxResult]: ...


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One call, as it is made."""

    tool: Tool | None = None
    """None if the call cannot be made."""
    program: str = ""
    arguments: Mapping[str, Any] | None = None
    key: str = ""
    """Equal for calls that give the same result; empty if no other call does."""
    refusal: str = ""
    """Why the call cannot be made, for the model to read."""


@dataclass(frozen=True, kw_only=True)
class _Result:
    status: str
    text: str
    """What the model reads, without any tags."""


class ToolRunner:
    """Runs the tools of a task, and counts what that costs. It is the `Partner` of a task with tools.

    Calls that end at the same time run together: programs in the sandbox, functions in threads or, if they are
    coroutine functions, on an event loop (`ctpo.rollout.calling`). Programs share nothing: each runs in an interpreter
    of its own. Functions run in this process and share what they keep.

    Where a tool is declared deterministic, a call that was made before is answered from memory, because making it again
    would give the same. Only results that do not depend on the machine's load (ok, error) are remembered.

    Args:
        tools: the Python tool, or all tools of a task.
        sandbox: runs the programs; not needed without a Python tool.
        template_kwargs: keyword arguments for the chat template, which decides in what form a model calls tools.

    Attributes:
        tool: the Python tool, or None.
        seconds, calls, failures, executed: since `reset_account`, the seconds spent, the calls answered, those of
            them that failed, and the calls that were really made.
    """

    def __init__(
        self,
        tools: PythonTool | Sequence[Tool],
        sandbox: Runs | None = None,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tools: tuple[Tool, ...] = (tools,) if isinstance(tools, PythonTool) else tuple(tools)
        self.tool = next((tool for tool in self.tools if isinstance(tool, PythonTool)), None)
        if self.tool is not None and sandbox is None:
            raise ValueError(
                "sandbox=None cannot run the programs of the Python tool; give a ctpo.sandbox.Sandbox"
            )
        self.sandbox = sandbox
        self._functions = {tool.name: tool for tool in self.tools if isinstance(tool, FunctionTool)}
        self._template_kwargs = template_kwargs
        self._caller = FunctionCaller()
        self._form: CallFormat | None = None
        self._known: OrderedDict[str, _Result] = OrderedDict()
        self.reset_account()

    def close(self) -> None:
        """Cancel coroutines that still run. The sandbox is left to who opened it."""
        self._caller.close()

    # -- as the partner of a model --------------------------------------------------------------------------

    @property
    def closing_characters(self) -> str:
        """The characters of which one ends every call in the middle of a turn."""
        return "" if self._form is None else self._form.closing_characters

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts of which one stands at the end of every such call."""
        return () if self._form is None else self._form.stops

    @property
    def answers_ends(self) -> bool:
        """Whether this model's calls are read when it has ended its turn."""
        return self._form is not None and self._form.answers_ends

    @property
    def patience(self) -> int:
        """0 if all tools are deterministic: most calls are then answered from memory, and waiting would not pay."""
        return 0 if all(tool.deterministic for tool in self.tools) else PATIENCE

    def begin(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> None:
        """Take the form in which this model calls tools, and let every response make as many calls as it may."""
        self._form = call_format(tokenizer, self.tools, self._template_kwargs)
        self._tokenizer = tokenizer
        self._quotas = [self.quota() for _ in prompts]

    def listens_to(self, response: int) -> bool:
        """Whether the response may make another call."""
        return self._quotas[response].left > 0

    def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
        """The results of the calls at the end of each turn; None without one. All calls run together."""
        form = self._form
        assert form is not None
        asked = [self._calls_of(form, turn) for turn in turns]
        made = iter(self.run([call for calls in asked for call in calls]))
        answers: list[Answer | None] = []
        for turn, calls in zip(turns, asked, strict=True):
            done = [next(made) for _ in calls]
            if not done:
                answers.append(None)
                continue
            results = [self._without_tags(call) for call in done]
            if form.style != "tags":
                done = [replace(call, output=text) for call, text in zip(done, results, strict=True)]
            end = turn.ids[-1] if turn.ended else None
            answers.append(
                Answer(ids=form.result_ids(self._tokenizer, calls, results, end=end), calls=tuple(done))
            )
        return answers

    def _calls_of(self, form: CallFormat, turn: Turn) -> list[Call]:
        text = self._tokenizer.decode(turn.ids, skip_special_tokens=False)
        quota = self._quotas[turn.response]
        return quota.admit(form.calls(text, ended=turn.ended, continued=quota.used > 0))

    def _without_tags(self, call: ToolCall) -> str:
        return call.output if self.tool is None or call.name != FUNCTION else self.tool.body(call.output)

    # -- calls ----------------------------------------------------------------------------------------------

    def quota(self) -> Quota:
        """How many calls one response may make."""
        return Quota(self._limits())

    def _limits(self) -> dict[str, int]:
        """The most calls of each tool in one response."""
        return {
            FUNCTION if isinstance(tool, PythonTool) else tool.name: tool.max_calls for tool in self.tools
        }

    def reset_account(self) -> None:
        """Set seconds, calls, failures and executed to 0."""
        self.seconds, self.calls, self.failures, self.executed = 0.0, 0, 0, 0

    def run(self, calls: Sequence[Call | str]) -> list[ToolCall]:
        """The calls with their results, in their order. They run together. A text is a program of the Python tool."""
        started = time.perf_counter()
        given = [call if isinstance(call, Call) else _program(call) for call in calls]
        requests = [self._request(call) for call in given]
        results = self._results(requests)
        self.seconds += time.perf_counter() - started
        self.calls += len(calls)
        self.failures += sum(result.status != SUCCESS for result in results)
        return [self._done(*each) for each in zip(given, requests, results, strict=True)]

    def _request(self, call: Call) -> _Request:
        if call.error is not None:
            return _Request(refusal=call.error)
        function = self._functions.get(call.name)
        if function is None and (self.tool is None or call.name != FUNCTION):
            return _Request(refusal=f"there is no function {call.name!r}; call {' or '.join(self._limits())}")
        if function is None:
            assert self.tool is not None
            program = str(call.arguments["code"])
            return _Request(tool=self.tool, program=program, key=_key(self.tool, FUNCTION, program))
        try:
            arguments = function.arguments(call.arguments)
        except UnusableArguments as reason:
            return _Request(refusal=str(reason))
        return _Request(tool=function, arguments=arguments, key=_key(function, call.name, call.arguments))

    def _results(self, requests: Sequence[_Request]) -> list[_Result]:
        """The result of each request. Requests with the same key are made once, and not at all if it is remembered."""
        known: dict[str, _Result] = {
            request.key: self._known[request.key] for request in requests if request.key in self._known
        }
        made: dict[str | int, _Request] = {}
        for i, request in enumerate(requests):
            if request.tool is not None and request.key not in known:
                made.setdefault(request.key or i, request)
        results = dict(zip(made, self._make(list(made.values())), strict=True))
        for name, result in results.items():
            if isinstance(name, str) and result.status in LASTING:
                self._known[name] = result
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return [
            self._refused(request.refusal)
            if request.tool is None
            else known.get(request.key) or results[request.key or i]
            for i, request in enumerate(requests)
        ]

    def _make(self, requests: Sequence[_Request]) -> list[_Result]:
        """Make these calls, all together."""
        self.executed += len(requests)
        programs = [request.program for request in requests if isinstance(request.tool, PythonTool)]
        calls = [
            FunctionCall(tool=request.tool, arguments=request.arguments or {})
            for request in requests
            if isinstance(request.tool, FunctionTool)
        ]
        with self._caller.start(calls) as batch:
            printed = iter(self.sandbox.run(programs) if programs and self.sandbox is not None else [])
            returned = iter(batch.outcomes())
        return [
            self._printed(request.tool, next(printed))
            if isinstance(request.tool, PythonTool)
            else _Result(status=(outcome := next(returned)).status, text=outcome.text)
            for request in requests
        ]

    def _printed(self, tool: PythonTool, result: SandboxResult) -> _Result:
        rendered = tool.render(result.status, result.stdout, result.stderr)
        return _Result(status=result.status, text=tool.body(rendered))

    def _refused(self, reason: str) -> _Result:
        """The result of a call that cannot be made. With the Python tool alone, it reads like a program that failed."""
        text = f"tool call: {reason}"
        if self.tool is not None and not self._functions:
            return _Result(status="error", text=self.tool.body(self.tool.render("error", "", text)))
        return _Result(status="error", text=f"{text}\n[error: the call was not made]")

    def _done(self, call: Call, request: _Request, result: _Result) -> ToolCall:
        output = result.text
        if self.tool is not None and call.name == FUNCTION:
            output = self.tool.result_open + output + self.tool.result_close
        return ToolCall(
            name=call.name,
            program=request.program or call.text,
            arguments={} if request.arguments is None else call.arguments,
            status=result.status,
            output=output,
        )


class Quota:
    """How many calls one response may still make.

    Args:
        limits: the most calls of each tool.

    Attributes:
        left: calls of any tool that may still be made.
        used: calls that were made.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits, self._made = limits, Counter[str]()
        self.left, self.used = sum(limits.values()), 0

    def admit(self, calls: Sequence[Call]) -> list[Call]:
        """The calls, with an error for each that is one too many."""
        return [self._admit(call) for call in calls]

    def _admit(self, call: Call) -> Call:
        self.left -= 1
        self.used += 1
        self._made[call.name] += 1
        made = self._made[call.name]
        if self.left < 0 or made > self._limits.get(call.name, made):
            return replace(call, error=f"{call.name} may not be called again in this response", arguments={})
        return call


def _program(text: str) -> Call:
    return Call(name=FUNCTION, arguments={"code": text}, text=text)


def _key(tool: Tool, name: str, given: Any) -> str:
    """What equal calls of a deterministic tool have in common; empty for any other tool."""
    return f"{name} {json.dumps(given, sort_keys=True)}" if tool.deterministic else ""


@contextmanager
def open_tools(
    task: Task, *, timeout_s: float = 3.0, memory_mb: int = 512, unsafe_no_isolation: bool = False
) -> Iterator[ToolRunner | None]:
    """A context with a runner of the task's tools, with a sandbox if one is Python's; None if the task has no tool.

    Args:
        timeout_s: how many seconds a program may run.
        memory_mb: how many MiB of memory a program may use.
        unsafe_no_isolation: whether to run programs without isolation, so that they can do whatever this user can.

    Raises:
        UserError: if programs cannot be isolated and `unsafe_no_isolation` is not set.
    """
    if not task.all_tools:
        yield None
        return
    with ExitStack() as stack:
        sandbox = None
        if task.tool is not None:
            try:
                sandbox = stack.enter_context(
                    Sandbox(timeout_s=timeout_s, memory_mb=memory_mb, unsafe_no_isolation=unsafe_no_isolation)
                )
            except SandboxUnavailable as error:
                raise UserError(str(error)) from None
        tools = ToolRunner(task.all_tools, sandbox, template_kwargs=task.template_kwargs)
        stack.callback(tools.close)
        yield tools
