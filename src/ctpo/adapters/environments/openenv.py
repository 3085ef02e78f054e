"""OpenEnv: a client of one of its servers, taken as it is."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.tasks.environment import Called, Unscorable
from ctpo.tasks.task import Problem

_NO_TEXT: Final = ("done", "reward", "metadata")
"""Fields of every observation, which say nothing to the model."""


def from_openenv(
    client: Callable[[], Any],
    *,
    action: Callable[[str], Any] | str | None = None,
    observe: Callable[[Any], str] | str | None = None,
    reset: Callable[[Problem], Mapping[str, Any]] | None = None,
) -> Callable[[], OpenEnvEnvironment]:
    """A factory for `Task(environment=...)`, from a function that makes a client of an OpenEnv server.

    Each conversation has a client, and so a session, of its own. A reply of the model becomes an action, and an
    observation becomes the next user message. Rewards and the end of the conversation are the server's.

    The server of an MCP environment offers tools instead, and its client (`MCPToolClient`) has `list_tools`. The model
    calls these tools. A turn without a call ends the conversation.

    Args:
        client: makes a client, for example `lambda: GenericEnvClient(base_url="http://localhost:8000")`.
        action: makes an action of a reply, or is the name of its field that takes the reply. None is for tools.
        observe: makes text of an observation, or is the name of the observation's field that is text. None shows an
            observation with one field as that field, and others as JSON.
        reset: the keywords of the client's `reset` for a problem; None passes none.

    Example:
        factory = from_openenv(lambda: GenericEnvClient(base_url=URL), action="message", observe="echoed_message")
        task = Task(name="echo", problems=problems, environment=factory, chat=True)
    """
    require("ctpo.adapters.environments.openenv", "openenv", "openenv")
    return lambda: OpenEnvEnvironment(client(), action, observe, reset)


class OpenEnvEnvironment:
    """One session of an OpenEnv server, as an environment of a task."""

    def __init__(
        self,
        client: Any,
        action: Callable[[str], Any] | str | None,
        observe: Callable[[Any], str] | str | None,
        reset: Callable[[Problem], Mapping[str, Any]] | None,
    ) -> None:
        self._client, self._action, self._observe, self._keywords = client, action, observe, reset
        self.schemas: list[Mapping[str, Any]] = []
        if action is None and not callable(getattr(client, "list_tools", None)):
            raise UserError(
                f"{type(client).__name__} has no tools, so its actions must be made of replies; give from_openenv(…, "
                "action='FIELD') or action=FUNCTION"
            )

    async def reset(self, problem: Problem) -> str | None:
        """The first observation. None, which stands for the problem's prompt, if it says nothing or there are tools."""
        keywords = {} if self._keywords is None else dict(self._keywords(problem))
        result = await self._asked("reset", **keywords)
        if self._action is not None:
            return self._text(result.observation) or None
        tools = await self._asked("list_tools")
        self.schemas = [_schema(tool.name, tool.description, tool.input_schema) for tool in tools]
        return None

    async def step(self, reply: str) -> tuple[str | None, float | None, bool]:
        """What the server answers to the action that the reply is. What is no action ends the conversation with 0."""
        if self._action is None:
            return None, 0.0, True
        try:
            action = {self._action: reply} if isinstance(self._action, str) else self._action(reply)
        except ValueError:
            return None, 0.0, True
        result = await self._asked("step", action)
        return self._text(result.observation), result.reward, bool(result.done)

    async def use(self, reply: str, calls: Sequence[Called]) -> tuple[list[str], float, bool]:
        """The results of the calls, made one after the other, the sum of their rewards, and whether it is over."""
        from openenv.core.env_server.mcp_types import CallToolAction

        results: list[str] = []
        total, over = 0.0, False
        for call in calls:
            if call.error is not None or over:
                results.append(f"error: {call.error or 'the conversation is over'}")
                continue
            action = CallToolAction(tool_name=call.name, arguments=dict(call.arguments))
            result = await self._asked("step", action)
            results.append(_result(result.observation))
            total, over = total + float(result.reward or 0.0), bool(result.done)
        return results, total, over

    async def close(self) -> None:
        """End the session."""
        await self._asked("close")

    async def _asked(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """What a method of the client returns. A client with `.sync()` called runs in a thread.

        Raises:
            Unscorable: if the server is gone or refuses.
        """
        function = getattr(self._client, method)
        try:
            if type(self._client).__name__ == "SyncEnvClient":
                return await asyncio.to_thread(function, *arguments, **keywords)
            value = function(*arguments, **keywords)
            return await value if inspect.isawaitable(value) else value
        except (OSError, RuntimeError, TimeoutError) as error:
            raise Unscorable(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            if type(error).__module__.startswith("websockets"):
                raise Unscorable(f"{type(error).__name__}: {error}") from error
            raise

    def _text(self, observation: Any) -> str:
        if callable(self._observe):
            return self._observe(observation)
        fields = _fields(observation)
        if self._observe is not None:
            if self._observe not in fields:
                raise UserError(
                    f"observe={self._observe!r} is no field of the observation ({', '.join(fields) or 'none'}); give "
                    "one of them"
                )
            return str(fields[self._observe])
        texts = {name: value for name, value in fields.items() if name not in _NO_TEXT}
        if len(texts) == 1:
            return str(next(iter(texts.values())))
        return json.dumps(texts, ensure_ascii=False, default=str) if texts else ""


def _fields(observation: Any) -> dict[str, Any]:
    """The fields of an observation: a dictionary, a pydantic model or a dataclass."""
    if isinstance(observation, Mapping):
        return dict(observation)
    dump = getattr(observation, "model_dump", None)
    return dict(dump()) if callable(dump) else dict(vars(observation))


def _schema(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The declaration of a tool as chat templates take it."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": dict(parameters)},
    }


def _result(observation: Any) -> str:
    """What a tool returned, as the model reads it."""
    error = getattr(observation, "error", None)
    if error is not None:
        return f"error: {error.message}"
    result = getattr(observation, "result", observation)
    result = result.get("data", result) if isinstance(result, Mapping) else getattr(result, "data", result)
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
