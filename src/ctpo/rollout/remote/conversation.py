"""One conversation with a model behind an endpoint: what is asked, what is heard, what is cut where."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from ctpo.errors import UserError
from ctpo.rollout.chat import SCHEMA
from ctpo.rollout.records import ToolCall
from ctpo.rollout.remote.endpoint import Endpoint, RequestFailed
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import PythonTool, Task
from ctpo.tasks.tool import SUCCESS

_FENCE = "```"


@dataclass(kw_only=True)
class Reply:
    """What came of one prompt."""

    text: str = ""
    """All that was said after the prompt, tool calls and outputs included."""
    tokens: int = 0
    """The model's own, by the server's count."""
    calls: list[ToolCall] = field(default_factory=list)
    finished: bool = False
    error: str | None = None
    """Why a request of this conversation failed; what was said before it stands."""


class Server:
    """An endpoint, and what conversations found out about it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.refuses_tools = False
        """Whether it was found to take no `tools`."""

    def note_refusal(self, tool: PythonTool, reason: str) -> None:
        """Have blocks written from now on; refuse where the task wants native calls."""
        if tool.style == "native":
            raise UserError(
                f"tool=native: the endpoint takes no tool calls ({reason}); start vLLM with "
                "--enable-auto-tool-choice --tool-call-parser NAME, or use tool=fenced"
            )
        self.refuses_tools = True


class Talk:
    """One conversation under way."""

    def __init__(
        self,
        server: Server,
        task: Task,
        tool: PythonTool | None,
        prompt: str,
        sampling: Sampling,
        seed: int | None,
    ) -> None:
        self.reply = Reply()
        self.done = False
        self.programs: list[str] = []
        self._server, self._tool, self._sampling, self._seed = server, tool, sampling, seed
        self._first_prompt_tokens: int | None = None
        self._used = 0
        self._begin(task, prompt)

    @property
    def may_call(self) -> bool:
        return self._tool is not None and len(self.reply.calls) < self._tool.max_calls

    def turn(self) -> None:
        """Ask for the next turn, and note the programs it calls."""
        try:
            self._turn()
        except RequestFailed as failure:
            self.reply.error = str(failure)
            self.reply.finished = False  # a turn before it may have ended by itself
            self.done = True
        else:
            self.done = not self.programs or self._used >= self._sampling.max_new_tokens
            if self.done:
                self.programs = []

    def hear(self, calls: list[ToolCall]) -> None:
        """Take what the programs printed."""
        raise NotImplementedError

    def _begin(self, task: Task, prompt: str) -> None:
        raise NotImplementedError

    def _turn(self) -> None:
        raise NotImplementedError

    def _ask(self, path: str, **payload: Any) -> tuple[dict[str, Any], bool]:
        """The first choice of the answer, and whether a stop text or the model itself ended it."""
        sampling = self._sampling
        drawn: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.top_k:
            drawn["top_k"] = sampling.top_k  # not OpenAI's, but vLLM's and SGLang's
        if self._seed is not None:
            drawn["seed"] = self._seed
        payload = {name: value for name, value in payload.items() if value}
        answer = self._server.endpoint.post(
            path, {**payload, **drawn, "max_tokens": sampling.max_new_tokens - self._used}
        )
        try:
            choice, usage = answer["choices"][0], answer["usage"]
            before, new = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise RequestFailed("the answer has no choice or no usage") from None
        if self._first_prompt_tokens is None:
            self._first_prompt_tokens = before
        self._used = before - self._first_prompt_tokens + new  # outputs of the tool included
        self.reply.tokens += new
        self.reply.finished = choice.get("finish_reason") in ("stop", "tool_calls")
        return choice, self.reply.finished


class Text(Talk):
    """A bare prompt that the model continues."""

    def _begin(self, task: Task, prompt: str) -> None:
        self._prompt = prompt

    def _turn(self) -> None:
        tool = self._tool
        stop = [tool.close] if tool is not None and self.may_call else []
        choice, ended = self._ask("completions", prompt=self._prompt + self.reply.text, stop=stop)
        self.programs, text = [], str(choice.get("text") or "")
        if stop and tool is not None:
            text, program = _cut_at_call(
                text, tool, stopped=ended and choice.get("stop_reason", "") is not None
            )
            self.programs = [] if program is None else [program]
        self.reply.text += text

    def hear(self, calls: list[ToolCall]) -> None:
        self.reply.calls += calls
        self.reply.text += "".join(call.output for call in calls)


class Chat(Talk):
    """Messages; the tool by the server's tool calls, or by blocks of code."""

    def _begin(self, task: Task, prompt: str) -> None:
        messages = task.messages(prompt)
        # A tool message without a tool call before it is refused by servers, so examples show blocks.
        self._messages: list[dict[str, Any]] = [
            _user(self._tool.render(SUCCESS, message["content"], ""))
            if message["role"] == "tool" and self._tool is not None
            else {**message}
            for message in messages
        ]
        self._ids: list[str] = []

    def _turn(self) -> None:
        self.programs, self._ids = [], []
        choice = self._say()
        message = choice["message"]
        text = str(message.get("content") or "")
        asked = message.get("tool_calls") or []
        if asked and self.may_call:
            self.programs = [_code(call) for call in asked]
            self._ids = [str(call.get("id")) for call in asked]
            self._messages.append({"role": "assistant", "content": text, "tool_calls": asked})
            self.reply.text += text + "".join(f"\n```python\n{program}\n```" for program in self.programs)
            return
        if self._tool is not None and self.may_call and self._tool.open.startswith(_FENCE):
            stopped = choice.get("finish_reason") == "stop" and choice.get("stop_reason", "") is not None
            text, program = _cut_at_call(text, self._tool, stopped=stopped)
            self.programs = [] if program is None else [program]
        self._messages.append({"role": "assistant", "content": text})
        self.reply.text += text

    def _say(self) -> dict[str, Any]:
        """The next message: with tools offered where the server takes them, else to be stopped after a block."""
        tool, server = self._tool, self._server
        if tool is None:
            return self._choice()
        if tool.style in ("auto", "native") and not server.refuses_tools:
            try:
                return self._choice(tools=[SCHEMA])
            except RequestFailed as failure:
                if failure.status is None or failure.status >= 500:
                    raise
                refusal = failure
            choice = self._blocks(tool)  # fails likewise if it was not the tools that were refused
            server.note_refusal(tool, str(refusal))
            return choice
        return self._blocks(tool)

    def _blocks(self, tool: PythonTool) -> dict[str, Any]:
        if not self.may_call or not tool.open.startswith(_FENCE):
            return self._choice()
        # The line's end after the fence belongs to it: "\n```" alone also begins a block.
        stop = tool.close + "\n"
        tokens, used = self.reply.tokens, self._used
        choice = self._choice(stop=[stop])
        text = str(choice["message"].get("content") or "")
        # Most servers leave the stop text out; transformers' own leaves it in.
        if tool.open not in text and (text.count(_FENCE) % 2 or text.endswith(stop)):
            # It stopped after a block that is no program; a chat cannot be continued in mid-message, so once more.
            self.reply.tokens, self._used = tokens, used
            return self._choice()
        return choice

    def _choice(self, **payload: Any) -> dict[str, Any]:
        choice, _ = self._ask("chat/completions", messages=self._messages, **payload)
        if not isinstance(choice.get("message"), dict):
            raise RequestFailed("the answer has no message")
        return choice

    def hear(self, calls: list[ToolCall]) -> None:
        tool = self._tool
        assert tool is not None
        self.reply.calls += calls
        self.reply.text += "".join(call.output for call in calls)
        bodies = [
            call.output.removeprefix(tool.result_open).removesuffix(tool.result_close) for call in calls
        ]
        if self._ids:
            self._messages += [
                {"role": "tool", "tool_call_id": name, "content": body}
                for name, body in zip(self._ids, bodies, strict=True)
            ]
        else:
            self._messages.append(_user("".join(call.output for call in calls)))


def _user(output: str) -> dict[str, Any]:
    """A tool's output as the message that a block of code is answered with."""
    return {"role": "user", "content": output.strip()}


def _cut_at_call(text: str, tool: PythonTool, *, stopped: bool) -> tuple[str, str | None]:
    """The text up to the end of its first call, and the call's program; a stop text is given back its end."""
    before, opened, body = text.partition(tool.open)
    if not opened:
        return text, None
    program, closed, _ = body.partition(tool.close)
    if not closed and not stopped:
        return text, None
    return before + opened + program + tool.close, tool.extract(program)


def _code(call: dict[str, Any]) -> str:
    """The program of a tool call; one that cannot be read is run as it stands, so that the model sees the error."""
    function = call.get("function") or {}
    arguments = function.get("arguments")
    try:
        read = json.loads(arguments) if isinstance(arguments, str) else arguments
        code = read["code"]  # type: ignore[index]
    except (ValueError, KeyError, TypeError, RecursionError):
        return str(arguments)
    return code if isinstance(code, str) else str(arguments)
