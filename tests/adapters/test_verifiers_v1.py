"""Tasks of verifiers 0.4 with their own loop, tools, stop conditions and rewards."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctpo.errors import UserError
from ctpo.rollout.environments import EnvironmentRunner
from ctpo.tasks.environment import Unscorable

pytest.importorskip("verifiers", reason="needs the package verifiers")
pytest.importorskip(
    "verifiers.v1.harnesses.utils.launch", reason="needs verifiers 0.4, which has tasksets and agents"
)

import verifiers.v1 as vf
from verifiers.v1.harnesses.utils.launch import CHAT_PROGRAM_SOURCE
from verifiers.v1.runtimes import SubprocessRuntime

from ctpo.adapters.environments.verifiers import from_verifiers

MODULE = '''
import verifiers.v1 as vf


class NumberData(vf.TaskData):
    answer: int
    difficulty: str = "easy"
    rates: dict = {}


class State(vf.State):
    turns: int = 0


class NumberTask(vf.Task[NumberData, State, vf.TaskConfig]):
    @vf.reward(weight=2.0)
    async def exact(self, trace) -> float:
        return float(int(trace.last_reply) == self.data.answer)

    @vf.reward
    async def short(self, trace) -> float:
        return 0.25 if trace.num_turns < 3 else 0.0


class Adding(vf.Toolset[vf.ToolsetConfig, State]):
    TOOL_PREFIX = None

    @vf.tool
    async def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b


class AddingTask(NumberTask):
    @classmethod
    def toolsets(cls, config):
        return [Adding(vf.ToolsetConfig())]

    @vf.stop
    async def four_turns(self, trace: vf.Trace) -> bool:
        return trace.num_turns >= 4


class Numbers(vf.Taskset[NumberTask, vf.TasksetConfig]):
    kind = NumberTask

    def load(self):
        for number in range(40):
            prompt = f"What is {number} and 1?"
            data = {"prompt": prompt, "answer": number + 1, "system_prompt": "Be brief."}
            yield self.kind(NumberData(rates={"small": number / 40}, **data), self.config.task)


class GuessConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime={"type": "subprocess"})


class Guess(vf.Env[GuessConfig]):
    """A game in which the environment is the player's user."""

    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            while not segment.terminated and (guess := int(segment.last_reply)) != task.data.answer:
                segment = await interaction.turn("higher" if guess < task.data.answer else "lower")


__all__ = ["Guess", "Numbers"]

if __name__ == "__main__":
    Adding.run()
'''


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module with a taskset and an environment, where tool servers find it too."""
    folder = tmp_path_factory.mktemp("tasksets")
    (folder / "numbers_v1.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))
        import numbers_v1

        yield numbers_v1


@pytest.fixture(scope="module")
def guess(numbers: Any) -> Any:
    return vf.load_environment(numbers.GuessConfig(taskset={"id": "numbers-v1"}))


def adding(numbers: Any) -> Any:
    taskset = numbers.Numbers(vf.TasksetConfig())
    taskset.kind = numbers.AddingTask
    return taskset


def called(**arguments: Any) -> Any:
    return SimpleNamespace(name="add", arguments=arguments, error=None)


def asks(number: int) -> list[dict[str, str]]:
    question = {"role": "user", "content": f"What is {number} and 1?"}
    return [{"role": "system", "content": "Be brief."}, question]


def test_a_field_of_difficulties(numbers: Any, guess: Any) -> None:
    task = from_verifiers(numbers.Numbers(vf.TasksetConfig()))
    plain, rated = (
        source("train", 3, 0) for source in (task.problems, task.problems.rated_by("rates.small"))
    )
    assert [each.difficulty for each in plain] == ["easy"] * 3
    assert [each.difficulty for each in rated] == [int(each.id) / 40 for each in plain]
    (first, *_) = from_verifiers(guess, difficulty="rates.small").problems("train", 1, 0)
    assert first.difficulty == int(first.id) / 40


def test_a_single_turn_and_its_rewards(numbers: Any) -> None:
    task = from_verifiers(numbers.Numbers(vf.TasksetConfig()), name="numbers")
    train, test = (task.problems(split, 99, 0) for split in ("train", "test"))
    assert len(train) + len(test) == 40
    assert test
    assert not {each.id for each in train} & {each.id for each in test}
    assert (train[0].prompt, train[0].answer) == (tuple(asks(0)), "1")
    runner = EnvironmentRunner(task)
    assert runner.reset(train[:4]) == [asks(int(each.id)) for each in train[:4]]
    steps = runner.step([0, 1], [train[0].answer, "0"])
    assert [(step.reward, step.done) for step in steps] == [(2.25, True), (0.25, True)]
    assert runner.finish_texts([2], [train[2].answer]) == [2.25]  # cut short, and scored as it is
    with pytest.raises(UserError, match=r"ValueError: invalid literal .*numbers_v1.py line 18"):
        runner.step([3], ["two"])
    runner.close()


def test_a_simulated_user(guess: Any) -> None:
    task = from_verifiers(guess)
    problem = next(each for each in task.problems("train", 9, 0) if each.answer == "3")

    async def talk() -> list[Any]:
        environment = task.environment()
        answers = [await environment.reset(problem), await environment.step("1"), await environment.step("3")]
        await environment.reset(problem)
        answers += [
            await environment.step("5"),
            await environment.finish("4"),
            await environment.reset(problem),
        ]
        answers += [await environment.step("2"), await environment.step("2"), await environment.finish("3")]
        await environment.reset(problem)
        await environment.close()
        return answers

    higher, lower = ([{"role": "user", "content": word}] for word in ("higher", "lower"))
    assert asyncio.run(talk()) == [
        *(asks(2), (higher, 0.0, False), (None, 2.25, True)),
        *((lower, 0.0, False), 0.25, asks(2)),  # cut short: the user's answer to 4 is not read any more
        *((higher, 0.0, False), (higher, 0.0, False), 2.0),
    ]


def test_tools_and_a_stop_condition(numbers: Any) -> None:
    task = from_verifiers(adding(numbers))
    (problem,) = task.problems("train", 1, 0)
    broken = SimpleNamespace(name="add", arguments={}, error="no JSON")

    async def talk() -> list[Any]:
        environment = task.environment()
        await environment.reset(problem)
        answers = [environment.schemas, await environment.use("Hm.", [called(a=2, b=3), broken])]
        return answers + [await environment.use("1", [called(a=turn, b=0)]) for turn in range(3)]

    (schema,), (results, *rest), *turns = asyncio.run(talk())
    assert schema["function"]["name"] == "add"
    assert set(schema["function"]["parameters"]["properties"]) == {"a", "b"}
    assert results[0] == "5"
    assert "resend the call with valid JSON" in results[1]
    assert rest == [0.0, False]
    assert turns == [(["0"], 0.0, False), (["1"], 0.0, False), ([""], 2.0, True)]


class Endpoint(BaseHTTPRequestHandler):
    """An endpoint of chat completions with fixed replies, which keeps what it was asked."""

    replies: list[str]
    asked: list[list[dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body["messages"])
        delta = {"role": "assistant", "content": self.replies.pop(0)}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        parts = [
            {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        payload = "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload.encode())

    def log_message(self, *_: Any) -> None:
        return


def test_the_same_conversation_and_reward_as_verifiers_itself(
    guess: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its own harness program, its own client and an endpoint, with the same replies."""
    task = from_verifiers(guess)
    problem = next(each for each in task.problems("train", 9, 0) if each.answer == "3")
    program = tmp_path / "chat.py"
    program.write_text(CHAT_PROGRAM_SOURCE)

    async def prepared(*_: Any, **__: Any) -> list[str]:
        return [sys.executable, str(program)]  # in place of an installation by uv

    monkeypatch.setattr(SubprocessRuntime, "prepare_uv_script", prepared)
    Endpoint.replies, Endpoint.asked = ["1", "5", "3"], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        client = vf.EvalClientConfig(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key_var="NONE")
        row = next(each for each in guess.taskset if each.data.answer == 3)
        theirs = asyncio.run(guess.run_episode(row, vf.ModelContext(model="m", client=client)))
    finally:
        server.shutdown()
        server.server_close()

    async def ours() -> tuple[list[Any], float]:
        environment = task.environment()
        asked, reward = [await environment.reset(problem)], 0.0
        for reply in ("1", "5", "3"):
            messages, reward, _ = await environment.step(reply)
            if messages is not None:
                asked.append([*asked[-1], {"role": "assistant", "content": reply}, *messages])
        return asked, reward

    assert theirs.ok
    assert asyncio.run(ours()) == (Endpoint.asked, theirs.traces[0].reward)
    assert theirs.traces[0].reward == 2.0


def test_what_is_not_supported_is_refused_in_one_line(numbers: Any) -> None:
    def environment(**player: Any) -> Any:
        return vf.load_environment(numbers.GuessConfig(taskset={"id": "numbers-v1"}, player=player))

    with pytest.raises(UserError, match="harness 'bash' and the runtime 'subprocess'; only"):
        from_verifiers(environment(harness={"id": "bash"}))
    with pytest.raises(UserError, match="runtime 'prime'; only"):
        from_verifiers(environment(runtime={"type": "prime"}))
    with pytest.raises(UserError, match="0 agents without a model of their own"):
        from_verifiers(environment(model="other"))

    class Running(numbers.NumberTask):  # type: ignore[misc,name-defined]
        async def setup(self, trace: Any, runtime: Any) -> None:
            await runtime.run(["true"], {})

    taskset = numbers.Numbers(vf.TasksetConfig())
    taskset.kind = Running
    task = from_verifiers(taskset)
    with pytest.raises(UserError, match="the task uses its runtime"):
        asyncio.run(task.environment().reset(task.problems("train", 1, 0)[0]))


def test_a_user_who_is_gone_leaves_the_response_unscored(numbers: Any) -> None:
    """A simulated user whose endpoint refuses connections."""
    gone = vf.EvalClientConfig(base_url="http://127.0.0.1:9/v1", api_key_var="NONE")

    class TwoConfig(numbers.GuessConfig):  # type: ignore[misc,name-defined]
        user: vf.AgentConfig = vf.AgentConfig(
            harness={"id": "null"}, runtime={"type": "subprocess"}, model="u", client=gone
        )

    class Two(vf.Env[TwoConfig]):  # type: ignore[misc]
        async def run(self, task: Any, agents: Any) -> None:
            async with agents.player.interaction(task) as player:
                await player.turn()
                await agents.user.run(task)

    task = from_verifiers(Two(TwoConfig(taskset={"id": "numbers-v1"})))

    async def talk() -> None:
        environment = task.environment()
        await environment.reset(task.problems("train", 1, 0)[0])
        await environment.step("1")

    with pytest.raises(Unscorable):
        asyncio.run(talk())
