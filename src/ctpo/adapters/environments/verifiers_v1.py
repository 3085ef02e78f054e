"""Tasks of the package `verifiers` from 0.4 on, with their tools, stop conditions, rewards and simulated users.

There a task is played by an agent: a harness (the program that asks for completions) and a model. Here the harness is
the chat loop of `verifiers`, its `null`, run in this process. Its requests pass the interception server of `verifiers`
on loopback, which keeps the trace, and reach a client that waits for the reply that our engine samples.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, Final

import httpx
from verifiers.v1 import (
    Agent,
    AgentConfig,
    AssistantMessage,
    Client,
    Env,
    EvalClientConfig,
    ModelContext,
    ProgramResult,
    ProviderError,
    Response,
    SubprocessConfig,
    Taskset,
    ToolCall,
)
from verifiers.v1.clients.train import serialize_completion
from verifiers.v1.configs.agent import agent_config_fields
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.null.harness import NullHarness
from verifiers.v1.harnesses.utils.compaction import bound_tool_message
from verifiers.v1.harnesses.utils.core import gate_tool_call
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp
from verifiers.v1.interception import InterceptionServer
from verifiers.v1.runtimes import SubprocessRuntime

from ctpo.adapters.environments.completions import CompletionEnvironment, plain
from ctpo.errors import UserError
from ctpo.tasks.columns import difficulty_of
from ctpo.tasks.environment import Called, Unscorable
from ctpo.tasks.splits import held_out
from ctpo.tasks.task import Problem, validate_request

_MODEL: Final = "ctpo"
_NOWHERE: Final = EvalClientConfig(base_url="http://127.0.0.1:9", api_key_var="CTPO_UNUSED")
"""`verifiers` wants an endpoint. Nothing is sent to it, because every request goes to our client."""
_USERS_CODE: Final = ("TaskError", "EnvError")
"""The errors of `verifiers` that a task's or an environment's own code has caused."""
_FRAME: Final = re.compile(r'File "([^"]+)", line (\d+)')


class Tasks:
    """The tasks of a taskset, as a source of problems. An eighth of the prompts is held out as the split "test"."""

    def __init__(self, taskset: Any) -> None:
        self._coming: Iterator[Any] = iter(taskset)
        self._read: list[Any] = []
        self._difficulty = "difficulty"

    def __call__(self, split: str, count: int, seed: int) -> list[Problem]:
        """The first tasks of the split; `seed` has no effect."""
        validate_request(split, count)
        wanted = (
            _problem(index, task, self._difficulty)
            for index, task in self._all()
            if held_out(task.data.prompt_text or task.key) == (split == "test")
        )
        return list(itertools.islice(wanted, count))

    def rated_by(self, column: str) -> Tasks:
        """The same problems with the difficulty in this field of the tasks' data."""
        other = copy.copy(self)
        other._difficulty = column
        return other

    def task(self, problem: Problem) -> Any:
        """The task that a problem was made of."""
        return next(task for index, task in self._all() if str(index) == problem.id)

    def _all(self) -> Iterator[tuple[int, Any]]:
        for index in itertools.count():
            if index == len(self._read):
                task = next(self._coming, None)
                if task is None:
                    return
                self._read.append(task)
            yield index, self._read[index]


class TaskEnvironment(CompletionEnvironment):
    """One conversation about a task of `verifiers`, played by its own loop.

    Args:
        source: a taskset, or an environment with one.
        tasks: of that taskset.
        seat: the agent of the environment that our model plays; None for a taskset.
    """

    def __init__(self, source: Any, tasks: Tasks, seat: str | None) -> None:
        super().__init__(type(source).__name__)
        self._source, self._tasks, self._seat = source, tasks, seat
        self._numbers = itertools.count()

    def _converse(self, problem: Problem) -> Coroutine[Any, Any, Any]:
        task = self._tasks.task(problem)
        return self._alone(task) if self._seat is None else self._together(task, self._seat)

    async def _alone(self, task: Any) -> Any:
        config = AgentConfig(
            model=_MODEL, client=_NOWHERE, harness={"id": "null"}, runtime={"type": "subprocess"}
        )
        async with _Interception(self._asked) as server:
            agent = Agent(config, interception=server)
            agent.harness = _Chat(agent.harness.config)
            trace = await agent.run(task, runtime=_NoPrograms(SubprocessConfig()))
        return trace, trace.ok, trace.errors

    async def _together(self, task: Any, seat: str) -> Any:
        environment = copy.copy(self._source)
        its_setup = environment.setup

        async def setup(agents: Any) -> None:
            await its_setup(agents)
            for name in agent_config_fields(environment.config):
                agent = getattr(agents, name)
                if agent.harness.config.id == "null":
                    agent.harness = _Chat(agent.harness.config)
            getattr(agents, seat).interception = server

        environment.setup = setup
        async with _Interception(self._asked) as server:
            episode = await environment.run_episode(task, ModelContext(model=_MODEL, client=_NOWHERE))
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        trace = next((trace for trace in episode.traces if trace.agent.name == seat), None)
        return trace, trace is not None and environment.complete(episode), errors

    def _response(self, reply: str, calls: Sequence[Called], *, cut: bool) -> Any:
        made = [
            ToolCall(
                id=f"call_{next(self._numbers)}",
                name=call.name,
                # An unreadable call has arguments that are no JSON, so that the loop says so in its own words.
                arguments=json.dumps(dict(call.arguments)) if call.error is None else call.error,
            )
            for call in calls
        ]
        message = AssistantMessage(content=reply, tool_calls=made or None)
        ending = "length" if cut else "tool_calls" if made else "stop"
        response = Response(id="", created=0, model=_MODEL, message=message, finish_reason=ending)
        response.raw = serialize_completion(response, _MODEL)
        return response

    def _too_long(self) -> Exception:
        error: Exception = ProviderError("the response has reached its length limit", status_code=400)
        return error

    def _scored(self, outcome: Any) -> float:
        trace, complete, errors = outcome
        if complete:
            return float(trace.reward)
        kind, reason = (errors[0].type, self._error(outcome)) if errors else ("", "no trace")
        raise UserError(f"{self._name}: {reason}; correct it") if kind in _USERS_CODE else Unscorable(reason)

    def _error(self, outcome: Any) -> str | None:
        if not outcome[2]:
            return None
        error = outcome[2][0]
        places = _FRAME.findall(error.traceback or "")
        # The first error of a chain comes first, with the place in the user's own code at its end.
        own = [place for place in places if "/verifiers/v1/" not in place[0]]
        place = f" ({own[0][0]} line {own[0][1]})" if own else ""
        return f"{' '.join(error.message.split())[:200]}{place}"


class _Interception(InterceptionServer):  # type: ignore[misc]
    """A server of which every request is answered by our engine."""

    def __init__(self, asked: Callable[[list[Any], list[Any] | None], Any]) -> None:
        super().__init__()
        self._asked = asked

    def register(self, session: Any) -> tuple[str, str]:
        # A server keeps its clients by their configurations. So it makes none, which would read all certificates.
        session.client = self.clients[session.ctx.client.model_dump_json()] = _Engine(
            self._asked, session.trace
        )
        secrets: tuple[str, str] = super().register(session)
        return secrets


class _Engine(Client):  # type: ignore[misc]
    def __init__(self, asked: Callable[[list[Any], list[Any] | None], Any], trace: Any) -> None:
        self._asked, self._trace = asked, trace

    async def get_response(self, dialect: Any, body: Any, *_: Any, **__: Any) -> Any:
        request = dialect.parse_request(body)
        try:
            return await self._asked(request.messages, request.tools)
        except ProviderError:
            self._trace.stop("max_total_tokens")  # as a limit of tokens of `verifiers` itself ends a rollout
            raise


class _Chat(NullHarness):  # type: ignore[misc]
    """The chat loop of the harness `null`, in this process."""

    async def setup(self, runtime: Any) -> None:
        """Nothing: no program has to be installed."""

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: Mapping[str, str],
        data: Any,
        tool_interception_url: str | None = None,
    ) -> Any:
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt or []
        messages += [each if isinstance(each, dict) else message_to_wire(each) for each in opening]
        servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                httpx.AsyncClient(timeout=None, trust_env=False, verify=False)
            )
            schemas, names, connections = await connect_mcp({"mcpServers": servers}, stack)
            tools = {"tools": schemas} if schemas else {}
            while True:
                answer = await client.post(
                    f"{endpoint}/chat/completions",
                    headers={"Authorization": f"Bearer {secret}"},
                    json={"model": ctx.model, "messages": messages, **tools},
                )
                if answer.status_code != 200:  # a stop condition or a limit; the trace says which
                    return ProgramResult(exit_code=1, stdout="", stderr=answer.text)
                message = answer.json()["choices"][0]["message"]
                messages.append(message)
                if not message.get("tool_calls"):
                    return ProgramResult(exit_code=0, stdout="", stderr="")
                for call in message["tool_calls"]:
                    result = None
                    if tool_interception_url:
                        result = await _denied(client, tool_interception_url, secret, call)
                    if result is None:
                        content = await _content(call["function"], names, connections)
                        name = call["function"]["name"]
                        result = {
                            "role": "tool",
                            "tool_call_id": call["id"],
                            "content": content,
                            "name": name,
                        }
                    messages.append(bound_tool_message(result))


async def _denied(client: Any, url: str, secret: str, call: Mapping[str, Any]) -> Any:
    """The message in place of a call's result, if the task's own hooks do not let it run; None if they do."""
    made = SimpleNamespace(id=call["id"], function=SimpleNamespace(**call["function"]))
    decision = await gate_tool_call(client, url, secret, made)
    return decision["message"] if decision["action"] == "deny" else None


async def _content(function: Mapping[str, str], names: Mapping[str, Any], connections: Any) -> Any:
    """What a call returns, or what is wrong with it, in the words of the harness `null`."""
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except json.JSONDecodeError as error:
        return f"error: invalid JSON in tool arguments ({error}); resend the call with valid JSON"
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        return f"error: tool arguments must be a JSON object, got {kind}; resend as an object"
    if function["name"] not in names:
        return f"error: unknown tool {function['name']!r}"
    return await call_mcp(connections, names, function["name"], arguments)


class _NoPrograms(SubprocessRuntime):  # type: ignore[misc]
    """A runtime in which nothing may run: a task's hooks might run what the model wrote, on this very machine."""

    async def alive(self) -> bool:
        return True

    async def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UserError(
            "the task uses its runtime, which is not sandboxed here; give an environment whose agent names the runtime "
            "'subprocess' if the task runs nothing that a model wrote"
        )

    run = open_process = run_background = _read = write = _refuse


def source_of(source: Any) -> tuple[Tasks, Callable[[], TaskEnvironment]]:
    """The problems and the environments of a taskset, or of an environment of `verifiers`.

    Raises:
        UserError: if it is none, or of a kind that is not supported.
    """
    if isinstance(source, Taskset):
        taskset, seat = source, None
    elif isinstance(source, Env):
        taskset, seat = source.taskset, _seat(source)
    else:
        raise UserError(
            f"{type(source).__name__} is neither a Taskset nor an Env of verifiers; give one of them"
        )
    if taskset.toolsets(taskset.config) or (seat is not None and type(source).start is not Env.start):
        raise UserError(
            f"{type(source).__name__} shares tools or resources among its tasks, which is not supported; give each "
            "task tools of its own (Task.toolsets)"
        )
    tasks = Tasks(taskset)
    return tasks, lambda: TaskEnvironment(source, tasks, seat)


def _seat(environment: Any) -> str:
    """The agent of an environment that has no model of its own."""
    name = type(environment).__name__
    agents = agent_config_fields(environment.config)
    free = [seat for seat, config in agents.items() if config.client is None and config.model is None]
    if len(free) != 1:
        raise UserError(
            f"{name} has {len(free)} agents without a model of their own ({', '.join(free)}), and one is trained; give "
            "each other agent a model and a client"
        )
    harness, runtime = environment.config.agent_harnesses()[free[0]].id, agents[free[0]].runtime.type
    if (harness, runtime) != ("null", "subprocess"):
        raise UserError(
            f"agent {free[0]!r} of {name} has the harness {harness!r} and the runtime {runtime!r}; only 'null' and "
            "'subprocess' are supported, because no other programs are started here"
        )
    seat: str = free[0]
    return seat


def _problem(index: int, task: Any, difficulty: str) -> Problem:
    data = task.data
    given = [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else data.prompt or []
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    messages = [*system, *map(plain, given)]
    opens = bool(given) and messages[-1]["role"] == "user"
    return Problem(
        # Where a simulated user opens the conversation, the environment gives the prompt in place of this.
        prompt=tuple(messages) if opens else data.prompt_text or "(the user begins)",
        answer=str(getattr(data, "answer", "")),
        id=str(index),
        difficulty=difficulty_of(data.model_dump(), difficulty),
    )
