"""Environments with every engine: a tiny model plays the game of the documentation."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctpo.errors import UserError
from ctpo.evaluation.judged import JudgedResponse, reward_figures, sample_problems
from ctpo.rollout import Endpoint, EndpointEngine, Rollout, Sampling, TransformersEngine, Turn, VLLMEngine
from ctpo.rollout.environments import EnvironmentRunner
from ctpo.rollout.messages import Continuation
from ctpo.rollout.template import Template
from ctpo.rollout.thinking import without_thoughts
from ctpo.tasks import Problem, Task
from ctpo.tasks.environment import Unscorable

from .conftest import make_model
from .served import model_behind, serving
from .test_vllm import Stepwise

QUESTION = "Which?"
PROBLEMS = [Problem(prompt=QUESTION, answer=str(number), id=f"n{number}") for number in (1, 2, 3)]
TALKS = {"1": ["2", "lower", "1"], "2": ["2"], "3": ["2", "higher", "3"]}


def documented() -> Any:
    """The task of docs/how-to/environments.md, which is shorter than 30 lines."""
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "environments.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import random.*?)```", text, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) < 30
    names: dict[str, Any] = {}
    exec(compile(code[1], "docs/how-to/environments.md", "exec"), names)
    return names["task"]


@pytest.fixture(scope="module")
def game() -> Task:
    task: Task = documented()
    return task


@pytest.fixture(scope="module")
def player(chat_tokenizer: Callable[..., Any]) -> Any:
    """A model that has learnt to guess 2 first, and to follow the hint."""
    import torch

    tokenizer = chat_tokenizer()
    model = make_model(tokenizer, num_hidden_layers=2, max_position_embeddings=1024)
    rows = [whole(tokenizer, TALKS[number]) for number in ("1", "3")]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    own = torch.tensor(
        [[i + 1 < len(row) and _learnt(tokenizer, row, i) for i in range(width - 1)] for row in rows]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(400):  # how many it takes depends on the processor
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits[own], ids[:, 1:][own])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.005:
            break
    assert loss.item() < 0.02
    return model.eval(), tokenizer


def _learnt(tokenizer: Any, row: list[int], at: int) -> bool:
    """Whether the model writes the token after this place: a digit, or the end of its turn."""
    before = tokenizer.decode(row[: at + 1])
    return bool(re.search(r"assistant\n\d?$", before))


def whole(tokenizer: Any, said: list[str]) -> list[int]:
    """The tokens of a whole conversation, as the chat template renders it at once."""
    roles = ["assistant", "user"] * len(said)
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    text = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}, *messages], tokenize=False)
    ids: list[int] = tokenizer.encode(text.rstrip(), add_special_tokens=False)
    return ids


def in_process(player: Any, runner: EnvironmentRunner, prompts: list[Any], limit: int = 200) -> list[Rollout]:
    engine = TransformersEngine(*player)
    return engine.generate(prompts, Sampling(max_new_tokens=limit, temperature=0.0), partner=runner)


def by_vllm(player: Any, runner: EnvironmentRunner, prompts: list[Any], limit: int = 200) -> list[Rollout]:
    engine = VLLMEngine(Stepwise(player), player[1], eos_token_ids=[player[1].eos_token_id])
    return engine.generate(prompts, Sampling(max_new_tokens=limit, temperature=0.0), partner=runner)


def play(
    player: Any,
    task: Task,
    problems: list[Problem],
    engine: Callable[..., list[Rollout]] = in_process,
    **options: Any,
) -> list[Rollout]:
    runner = EnvironmentRunner(task)
    try:
        rollouts = engine(player, runner, runner.open(player[1], problems), **options)
        runner.finish(rollouts)
    finally:
        runner.close()
    return rollouts


@pytest.mark.parametrize("engine", [in_process, by_vllm])
def test_a_response_is_what_the_template_makes_of_the_conversation(
    player: Any, game: Task, engine: Any
) -> None:
    tokenizer = player[1]
    for problem, rollout in zip(PROBLEMS, play(player, game, PROBLEMS, engine), strict=True):
        said = TALKS[problem.answer]
        assert rollout.prompt_ids + rollout.completion_ids == whole(tokenizer, said)
        ends = [i for i, token in enumerate(rollout.completion_ids) if token == tokenizer.eos_token_id]
        own = [i for i in ends if rollout.response_mask[i]]
        assert rollout.turn_rewards == [(i, float(i == own[-1])) for i in own]
        assert len(own) == len(said[::2])
        written = [t for t, mine in zip(rollout.completion_ids, rollout.response_mask, strict=True) if mine]
        assert tokenizer.decode(written, skip_special_tokens=True) == "".join(said[::2])
        assert rollout.finished


def test_a_conversation_ends_at_its_limits(player: Any, game: Task) -> None:
    class Scored(game.environment):  # type: ignore[misc,name-defined]
        def finish(self, reply: str) -> float:
            return -0.25 if reply else -0.5

    three = PROBLEMS[2:]
    (rollout,) = play(player, dataclasses.replace(game, environment=Scored, max_turns=1), three)
    assert (rollout.turn_rewards, rollout.finished) == (
        [(1, -0.5)],
        True,
    )  # after the answer to the last turn
    (rollout,) = play(player, dataclasses.replace(game, environment=Scored), three, limit=1)
    assert (rollout.turn_rewards, rollout.finished) == ([(0, -0.25)], False)  # in the middle of a turn
    (rollout,) = play(player, dataclasses.replace(game, environment=Scored), three, limit=6)
    assert (rollout.turn_rewards, rollout.finished) == (
        [(1, 0.0), (5, -0.5)],
        False,
    )  # in the middle of a hint


def test_evaluations_play_too(player: Any, game: Task) -> None:
    """In process and behind an endpoint: the same conversations, rewards and verdicts."""
    model, tokenizer = player
    sampling, problems = Sampling(max_new_tokens=200, temperature=0.0), [*PROBLEMS, PROBLEMS[0]]
    known = dataclasses.replace(game, max_turns=1)
    here, limited = (
        sample_problems(TransformersEngine(model, tokenizer), task, problems, sampling, samples=2)
        for task in (game, known)
    )
    with serving(model_behind(model, tokenizer)) as (url, requests):
        engine = EndpointEngine(Endpoint(url, "tiny"))
        there = sample_problems(engine, game, problems, sampling, samples=2)
    said = [TALKS[each.problem.answer] for each in there]
    assert [each.text.split() for each in there] == said
    assert [each.text.split()[::4] for each in here] == [
        talk[::2] for talk in said
    ]  # with the names of the roles
    for one, other in zip(here, there, strict=True):
        assert one.turn_rewards == other.turn_rewards
        assert one.turn_rewards[-1] == one.reward == 1.0
        assert (one.correct, one.finished, other.finished) == (True, True, True)
        assert JudgedResponse.from_record(json.loads(json.dumps(one.record()))) == one
    assert [each.correct for each in limited] == [each.problem.answer == "2" for each in limited]
    assert reward_figures(limited)["reward"] == 0.25
    talk = requests[-1][1]["messages"]
    assert [each["role"] for each in talk] == ["user", "assistant", "user"]


def test_special_tokens_in_a_message_stay_text(chat_tokenizer: Callable[..., Any]) -> None:
    tokenizer = chat_tokenizer()
    eos, start = tokenizer.encode("<|im_end|>"), tokenizer.encode("<|im_start|>")
    talk = Continuation(Template(tokenizer), conversational=True)
    ids = talk.ids([{"role": "user", "content": "a<|im_end|>b"}, {"role": "user", "content": "c"}])
    assert tokenizer.decode(ids) == (
        "\n<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (ids.count(eos[0]), ids.count(start[0])) == (
        2,
        3,
    )  # those of the template, and not that of the message
    for contents, places in {  # of the template's own tokens; a content may equal one of them, or be empty
        ("<|im_start|>",): [1, 19, 21],
        ("a", "<|im_end|>"): [1, 8, 10, 26, 28],
        ("",): [1, 7, 9],
    }.items():
        ids = talk.ids([{"role": "user", "content": content} for content in contents])
        assert [at for at, token in enumerate(ids) if token in (eos[0], start[0])] == places
    assert not talk.opens_thought([{"role": "user", "content": "You wrote <think> and no more."}])
    bare = Continuation(Template(tokenizer), conversational=False)
    assert (
        tokenizer.decode(bare.ids([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]))
        == "ab"
    )


@pytest.mark.parametrize(
    ("text", "opened", "reply"),
    [
        ("<think>\n7?</think>\n\n5", False, "\n\n5"),
        ("is it 7?</think>5", True, "5"),
        ("is it 7?", True, ""),
        ("5<think>or 7", False, "5"),
        ("5", False, "5"),
    ],
)
def test_thoughts_are_kept_from_the_environment(text: str, opened: bool, reply: str) -> None:
    assert without_thoughts(text, opened=opened) == reply


class Faulty:
    """Does what the problem's answer says."""

    def reset(self, problem: Problem) -> str:
        self.fault = problem.answer
        if self.fault == "reset":
            raise KeyError("lost")
        return "?"

    def step(self, reply: str) -> Any:
        if self.fault == "step":
            raise ValueError("no\nnumber")
        if self.fault == "gone":
            raise Unscorable("the server is gone")
        values = {"two": ("a", 1.0), "nan": ("a", math.nan, True), "role": ([{"role": "?"}], 0.0, False)}
        return values[self.fault]


PLACE = r"environment Faulty \(\S+test_environments.py line \d+\)"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("reset", rf"{PLACE}: reset raises KeyError: 'lost' \(problem x\)"),
        ("step", rf"{PLACE}: step raises ValueError: no number \(problem x\)"),
        ("two", r"step of problem x returns \('a', 1.0\); return three values: messages, reward, done"),
        ("nan", r"step of problem x returns the reward nan; return a finite number"),
        (
            "role",
            r"step of problem x returns {'role': '\?'} as a message; return text, or a list of messages",
        ),
    ],
)
def test_errors_of_an_environment_are_one_line(game: Task, fault: str, words: str) -> None:
    runner = EnvironmentRunner(dataclasses.replace(game, environment=Faulty))
    problem = Problem(prompt="", answer=fault, id="x")

    def play() -> None:
        runner.reset([problem])
        runner.step([0], ["5"])

    with pytest.raises(UserError, match=words) as error:
        play()
    assert "\n" not in str(error.value)
    runner.close()


def test_what_cannot_be_scored_is_told_once(game: Task) -> None:
    runner = EnvironmentRunner(dataclasses.replace(game, environment=Faulty))
    runner.reset([Problem(prompt="", answer="gone", id=f"x{i}") for i in range(2)])
    with pytest.warns(UserWarning, match=r"step of problem x0 gives up \(the server is gone\)") as caught:
        steps = runner.step([0, 1], ["5", "6"])
    assert len(caught) == 1
    assert all(math.isnan(step.reward) and step.done for step in steps)
    runner.close()


class Patient:
    """A coroutine that waits for the other conversations, or for ever."""

    here: int
    everyone: asyncio.Event
    closed = 0

    async def reset(self, problem: Problem) -> None:
        self.waits = problem.answer

    async def step(self, reply: str) -> tuple[None, float, bool]:
        if self.waits == "block":
            time.sleep(2.0)
        if self.waits == "ever":
            await asyncio.sleep(60)
        Patient.here += 1
        if Patient.here == 2:
            Patient.everyone.set()
        await Patient.everyone.wait()
        return None, 1.0, True

    async def close(self) -> None:
        Patient.closed += 1


@pytest.mark.parametrize("third", ["ever", "block"])
def test_coroutines_wait_together_and_are_given_up_alone(game: Task, third: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("ctpo.rollout.background._RESPONSIVE_S", 0.2)
    Patient.here, Patient.closed, Patient.everyone = 0, 0, asyncio.Event()
    runner = EnvironmentRunner(dataclasses.replace(game, environment=Patient, step_timeout_s=0.5))
    names = ["good", "good", third]
    runner.reset([Problem(prompt="", answer=name, id=name) for name in names])
    with pytest.warns(UserWarning, match="takes more than step_timeout_s=0.5 seconds"):
        rewards = [step.reward for step in runner.step([0, 1, 2], ["", "", ""])]
    assert third == "block" or rewards[:2] == [1.0, 1.0]  # who blocks the loop takes the others along
    assert math.isnan(rewards[2])
    Patient.everyone = asyncio.Event()
    Patient.here = 1
    runner.reset([Problem(prompt="", answer="good", id="later")])
    assert runner.step([0], [""])[0].reward == 1.0
    runner.close()
    scored = sum(reward == 1.0 for reward in rewards)
    assert Patient.closed == max(scored, 1)  # those that were given up are left alone


def test_an_environment_stays_in_its_thread(game: Task) -> None:
    seen: set[tuple[int, int]] = set()

    class Threaded:
        def reset(self, problem: Problem) -> None:
            seen.add((id(self), threading.get_ident()))

        def step(self, reply: str) -> tuple[None, float, bool]:
            seen.add((id(self), threading.get_ident()))
            return None, 0.0, False

    runner = EnvironmentRunner(dataclasses.replace(game, environment=Threaded))
    for _ in range(2):  # the objects are used again
        runner.reset(PROBLEMS)
        for _ in range(2):
            runner.step([0, 1, 2], ["", "", ""])
    runner.close()
    assert len(seen) == len({thread for _, thread in seen}) == 3


class Counter:
    """An environment as TRL's trainer takes them: a class whose other public methods are tools."""

    def reset(self, **columns: Any) -> str:
        self.total = int(columns["answer"])
        return " Go."

    def add(self, number: int) -> int:
        """Add to the total.

        Args:
            number: how much
        """
        self.total += number
        return self.total

    async def double(self) -> int:
        """Double the total."""
        self.total *= 2
        return self.total

    def get_reward(self) -> float:
        return float(self.total)

    def _private(self) -> None: ...


def test_a_trl_environment_is_taken_as_it_is(chat_tokenizer: Callable[..., Any]) -> None:
    from ctpo.adapters.environments.trl import from_trl

    tokenizer = chat_tokenizer()
    task = Task(name="counter", problems=lambda *_: [], environment=from_trl(Counter), chat=True, max_turns=4)
    runner = EnvironmentRunner(task)
    (prompt,) = runner.open(tokenizer, [Problem(prompt="Count.", answer="3", id="c")])
    asked = tokenizer.decode(prompt)
    assert "Count. Go." in asked
    assert '"add"' in asked
    assert '"double"' in asked
    assert "_private" not in asked
    assert "get_reward" not in asked

    def turn(text: str, *, ended: bool = False) -> Any:
        (answer,) = runner.answer([Turn(response=0, ids=tokenizer.encode(text), ended=ended)])
        return answer

    assert turn("Let me ```tool_call") is None  # not complete yet
    call = "```tool_call\n%s\n```"
    first = turn(call % '{"name": "add", "arguments": {"number": 4}}')
    assert (first.reward, first.done) == (0.0, False)
    assert "<|im_start|>tool\n7<|im_end|>" in tokenizer.decode(first.ids)
    second = turn(call % '{"name": "double", "arguments": {}}')
    assert "<|im_start|>tool\n14<|im_end|>" in tokenizer.decode(second.ids)
    wrong = turn(call % '{"name": "add", "arguments": {"number": "x"}}')
    assert "{'error': \"unsupported operand" in tokenizer.decode(wrong.ids)  # TRL's words
    last = turn("Done.<|im_end|>", ended=True)
    assert (last.ids, last.reward, last.done) == ([], 14.0, True)
    assert not runner.listens_to(0)
    runner.close()


def test_a_program_first_and_the_answer_to_the_environment(
    chat_tokenizer: Callable[..., Any], sandbox: Any
) -> None:
    from ctpo.rollout import ToolRunner
    from ctpo.tasks import CHAT_TOOL

    class Answered:
        def reset(self, problem: Problem) -> None:
            self.right = problem.answer

        def step(self, reply: str) -> tuple[str, float, bool]:
            return "no", float(reply.strip() == self.right), reply.strip() == self.right

    tokenizer = chat_tokenizer()
    task = Task(name="both", problems=lambda *_: [], environment=Answered, chat=True, tool=CHAT_TOOL)
    tools = ToolRunner(CHAT_TOOL, sandbox)
    runner = EnvironmentRunner(task, tools)
    prompts = runner.open(tokenizer, [Problem(prompt="6*7?", answer="42", id=f"p{i}") for i in range(2)])
    runner.begin(tokenizer, prompts)
    program = tokenizer.encode("```python\nprint(6*7)\n```")
    guess = tokenizer.encode("41<|im_end|>")
    one, other = runner.answer(
        [Turn(response=0, ids=program, ended=False), Turn(response=1, ids=guess, ended=True)]
    )
    assert "42" in tokenizer.decode(one.ids)
    assert (len(one.calls), one.reward) == (1, None)
    assert tokenizer.decode(other.ids) == "\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n"
    assert (other.calls, other.reward, other.done) == ((), 0.0, False)
    right = Turn(response=0, ids=tokenizer.encode("42<|im_end|>"), ended=True)
    (last,) = runner.answer([right])
    assert (last.ids, last.reward, last.done) == ([], 1.0, True)
    assert runner.executed == 1
    runner.close()
