"""OpenEnv's clients as environments, against its own servers on this machine."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ctpo.tasks import Problem
from ctpo.tasks.environment import Unscorable

pytest.importorskip("openenv.core", reason="needs the package openenv")

import uvicorn
from fastmcp import FastMCP
from openenv.core import GenericEnvClient, MCPToolClient
from openenv.core.env_server import (
    Action,
    CallToolAction,
    CallToolObservation,
    Environment,
    MCPEnvironment,
    Observation,
    State,
    create_fastapi_app,
)

from ctpo.adapters.environments.openenv import from_openenv

PROBLEM = Problem(prompt="Guess.", answer="7", id="seven")


class Guessed(Action):
    guess: int


class Hint(Observation):
    hint: str = ""


class Guess(Environment):  # type: ignore[misc]
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Hint:
        self.number = kwargs["number"]
        return Hint(hint="1 to 9")

    def step(self, action: Guessed, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        right = action.guess == self.number
        hint = "right" if right else "higher" if action.guess < self.number else "lower"
        return Hint(hint=hint, reward=float(right), done=right)

    @property
    def state(self) -> State:
        return State()


class Calculator(MCPEnvironment):  # type: ignore[misc]
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        server = FastMCP("calculator")

        @server.tool()
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Observation:
        return Observation()

    def _step_impl(self, action: Any, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        return Observation()

    @property
    def state(self) -> State:
        return State()


def serve(app: Any) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def guess() -> Iterator[str]:
    yield from serve(create_fastapi_app(Guess, Guessed, Hint, max_concurrent_envs=8))


@pytest.fixture(scope="module")
def calculator() -> Iterator[str]:
    yield from serve(
        create_fastapi_app(Calculator, CallToolAction, CallToolObservation, max_concurrent_envs=8)
    )


@pytest.mark.parametrize("sync", [False, True])
def test_replies_become_actions_and_observations_messages(guess: str, sync: bool) -> None:
    def client() -> Any:
        made = GenericEnvClient(base_url=guess)
        return made.sync() if sync else made

    factory = from_openenv(
        client,
        action=lambda reply: {"guess": int(reply)},
        reset=lambda problem: {"number": int(problem.answer)},
    )

    async def talk() -> list[Any]:
        one, other = factory(), factory()  # two sessions at the same time
        answers = [await one.reset(PROBLEM), await other.reset(Problem(prompt="", answer="2", id="two"))]
        answers += [
            await one.step("5"),
            await other.step("5"),
            await one.step("7"),
            await other.step("what?"),
        ]
        await one.close()
        await other.close()
        return answers

    assert asyncio.run(talk()) == [
        *("1 to 9", "1 to 9"),
        ("higher", 0.0, False),
        ("lower", 0.0, False),
        ("right", 1.0, True),
        (None, 0.0, True),
    ]


def test_a_server_that_is_gone_scores_nothing(guess: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = from_openenv(
        lambda: GenericEnvClient(base_url=f"http://127.0.0.1:{port}"), action="guess"
    )()
    with pytest.raises(Unscorable, match="Connect"):
        asyncio.run(environment.reset(PROBLEM))


def test_the_tools_of_an_mcp_server_are_called(calculator: str) -> None:
    environment = from_openenv(lambda: MCPToolClient(base_url=calculator))()

    async def talk() -> list[Any]:
        answers: list[Any] = [await environment.reset(PROBLEM), environment.schemas]
        calls = [
            SimpleNamespace(name="add", arguments={"a": 3, "b": 4}, error=None),
            SimpleNamespace(name="add", arguments={}, error="no JSON"),
            SimpleNamespace(name="take", arguments={}, error=None),
        ]
        answers += [await environment.use("Let me see.", calls), await environment.step("7")]
        await environment.close()
        return answers

    opening, schemas, (results, reward, over), ending = asyncio.run(talk())
    assert opening is None
    (schema,) = schemas
    assert schema["function"]["name"] == "add"
    assert set(schema["function"]["parameters"]["properties"]) == {"a", "b"}
    assert results[:2] == ["7", "error: no JSON"]
    assert results[2].startswith("error:")
    assert (reward, over, ending) == (0.0, False, (None, 0.0, True))
