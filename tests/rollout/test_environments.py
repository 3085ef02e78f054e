"""Environments with every engine: a tiny model plays the game of the documentation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctpo.rollout import Rollout, Sampling, TransformersEngine, VLLMEngine
from ctpo.rollout.environments import EnvironmentRunner
from ctpo.rollout.messages import Continuation, without_thoughts
from ctpo.rollout.template import Template
from ctpo.tasks import Problem, Task

from .test_vllm import Stepwise

QUESTION = "Which?"
PROBLEMS = [Problem(prompt=QUESTION, answer=str(number), id=f"n{number}") for number in (1, 2, 3)]
TALKS = {"1": ["2", "lower", "1"], "2": ["2"], "3": ["2", "higher", "3"]}


def documented() -> Any:
    """The task of docs/environments.md, which is shorter than 30 lines."""
    text = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(import random.*?)```", text, re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) < 30
    names: dict[str, Any] = {}
    exec(compile(code[1], "docs/environments.md", "exec"), names)
    return names["task"]


@pytest.fixture(scope="module")
def game() -> Task:
    task: Task = documented()
    return task


@pytest.fixture(scope="module")
def player(chat_tokenizer: Callable[..., Any]) -> Any:
    """A model that has learnt to guess 2 first, and to follow the hint."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = chat_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    rows = [whole(tokenizer, TALKS[number]) for number in ("1", "3")]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    own = torch.tensor(
        [[i + 1 < len(row) and _learnt(tokenizer, row, i) for i in range(width - 1)] for row in rows]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits[own], ids[:, 1:][own])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
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
