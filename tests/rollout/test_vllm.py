"""The turns of the vLLM engine, with a real model that completes token ids in place of vLLM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ctpo.errors import UserError
from ctpo.rollout import ToolRunner, TransformersEngine, VLLMEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.local.decoders import cache_argument
from ctpo.rollout.noise import row_uniforms
from ctpo.rollout.remote.vllm import Completion, CompletionRequest
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Task

from .conftest import TALKS


class Stepwise:
    """Completes as vLLM does: token by token up to an end token, a stop text (which is kept) or the limit."""

    context = 1024

    def __init__(self, model: Any) -> None:
        self.model, self.tokenizer = model
        self.asked: list[list[CompletionRequest]] = []
        self.sleeping = True

    @contextmanager
    def awake(self) -> Iterator[None]:
        self.sleeping = False
        yield
        self.sleeping = True

    def anyone(self, live: bool) -> bool:
        return live

    def complete(
        self, asks: Sequence[CompletionRequest], sampling: Sampling, eos: Sequence[int]
    ) -> list[Completion]:
        assert not self.sleeping
        self.asked.append(list(asks))
        return [self._one(ask, sampling, eos) for ask in asks]

    @torch.no_grad()
    def _one(self, ask: CompletionRequest, sampling: Sampling, eos: Sequence[int]) -> Completion:
        generator = torch.Generator().manual_seed(ask.seed or 0)
        ids: list[int] = []
        logps: list[float] = []
        name, past, fed = cache_argument(self.model), None, ask.ids
        while len(ids) < ask.max_new_tokens:
            output = self.model(torch.tensor([fed]), use_cache=True, **{name: past})
            past = output[name]
            row = (output.logits[0, -1] / (sampling.temperature or 1.0)).log_softmax(-1)
            token = (
                int(torch.multinomial(row.exp(), 1, generator=generator))
                if sampling.temperature
                else int(row.argmax())
            )
            ids.append(token)
            logps.append(float(row[token]))
            fed = [token]
            text = self.tokenizer.decode(ids)
            if token in eos or any(stop in text for stop in ask.stop):
                break
        return Completion(ids, logps)


def generate(model: Any, task: Task, sandbox: Any, sampling: Sampling, seed: int | None = None) -> Any:
    completer = Stepwise(model)
    engine = VLLMEngine(completer, model[1], eos_token_ids=[model[1].eos_token_id])
    prompts = [encode_prompt(model[1], task, question) for question in TALKS]
    uniforms = None if seed is None else row_uniforms(range(len(prompts)), sampling.max_new_tokens, seed=seed)
    tools = None if task.tool is None else ToolRunner(task.tool, sandbox)
    return engine.generate(prompts, sampling, partner=tools, uniforms=uniforms), completer


@pytest.mark.parametrize("limit", [400, 63, 62, 61, 30, 26, 25])
def test_greedy_turns_equal_the_engine_in_process(
    chat_model: Any, chat_task: Task, sandbox: Any, limit: int
) -> None:
    sampling = Sampling(max_new_tokens=limit, temperature=0.0)
    got, completer = generate(chat_model, chat_task, sandbox, sampling)
    prompts = [encode_prompt(chat_model[1], chat_task, question) for question in TALKS]
    tools = ToolRunner(chat_task.tool, sandbox)  # type: ignore[arg-type]
    expected = TransformersEngine(*chat_model).generate(prompts, sampling, partner=tools)
    for one, other in zip(got, expected, strict=True):
        assert one.completion_ids == other.completion_ids
        assert one.response_mask == other.response_mask
        assert one.finished == other.finished
        assert [call.program for call in one.calls] == [call.program for call in other.calls]
        torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(other.logps), atol=1e-4, rtol=0)
    if limit == 400:
        # Every turn sends the whole sequence as ids: each is a prefix of what came out.
        for asks in completer.asked:
            for ask in asks:
                assert any((r.prompt_ids + r.completion_ids)[: len(ask.ids)] == ask.ids for r in got)


def test_log_probs_and_seeds_of_sampled_turns(chat_model: Any, chat_task: Task, sandbox: Any) -> None:
    sampling = Sampling(max_new_tokens=200, temperature=1.2)
    got, completer = generate(chat_model, chat_task, sandbox, sampling, seed=3)
    again, _ = generate(chat_model, chat_task, sandbox, sampling, seed=3)
    assert [r.completion_ids for r in got] == [r.completion_ids for r in again]
    seeds = [ask.seed for asks in completer.asked for ask in asks]
    assert len(set(seeds)) == len(seeds)
    assert any(r.calls for r in got)
    for rollout in got:
        with torch.no_grad():
            ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
            logits = chat_model[0](ids).logits[0, len(rollout.prompt_ids) - 1 : -1] / sampling.temperature
        exact = logits.log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(-1)
        own = torch.tensor(rollout.response_mask, dtype=torch.bool)
        torch.testing.assert_close(torch.tensor(rollout.logps)[own], exact[own], atol=1e-4, rtol=0)
        assert not torch.tensor(rollout.logps)[~own].any()


def test_prompts_beyond_the_context_are_named(chat_model: Any) -> None:
    engine = VLLMEngine(Stepwise(chat_model), chat_model[1], eos_token_ids=[0])
    with pytest.raises(UserError, match=r"prompt 0 has 5 tokens, .* exceeds vLLM's context of 1024"):
        engine.generate([[1] * 5], Sampling(max_new_tokens=1020))
    with pytest.raises(UserError, match="prompt 0 is empty"):
        engine.generate([[]], Sampling(max_new_tokens=10))
