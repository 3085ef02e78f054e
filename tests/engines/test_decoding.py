"""Our decoder as a server, and responses that are sampled from it piece by piece."""

from __future__ import annotations

import asyncio

import pytest
import torch

from ctpo.engines.verl.conversation import Conversed, Piece, converse
from ctpo.engines.verl.decoding import Decoding
from ctpo.engines.verl.place import Orders, Place
from ctpo.errors import UserError
from ctpo.evaluation.model import load_model
from ctpo.rollout import Sampling, TransformersEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.remote.row import CompletionRequest
from ctpo.rollout.tools import open_tools
from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import model_location

TASK = get_task("arithmetic")
PROBLEMS = TASK.problems("test", 12, 0)
GREEDY = Sampling(max_new_tokens=96, temperature=0.0)


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    torch.set_num_threads(1)
    return TransformersEngine(*load_model(model_location("embedded")))


def responses(engine: TransformersEngine, decoding: Decoding, orders: Orders) -> list[Conversed]:
    place = Place(orders)
    eos = [engine.tokenizer.eos_token_id]

    async def complete(request: CompletionRequest) -> Piece:
        completion, version = await decoding.complete(request, GREEDY)
        return Piece(
            ids=completion.ids, logps=completion.logps, versions=() if version is None else (version,)
        )

    async def everybody() -> list[Conversed]:
        return list(
            await asyncio.gather(
                *(converse(place, engine.tokenizer, problem, eos, complete) for problem in PROBLEMS)
            )
        )

    return asyncio.run(everybody())


def test_pieces_make_the_response_that_the_engine_samples_at_once(engine: TransformersEngine) -> None:
    """At temperature 0: same tokens, same mask, same calls, and log-probs within rounding."""
    with open_tools(TASK) as tools:
        prompts = [encode_prompt(engine.tokenizer, TASK, problem.prompt) for problem in PROBLEMS]
        whole = engine.generate(prompts, GREEDY, partner=tools)
    pieces = responses(engine, Decoding(engine, 0), Orders(task="arithmetic", max_tokens=96))
    assert sum(len(each.calls) for each in whole) >= 12
    for one, other in zip(pieces, whole, strict=True):
        assert one.rollout.completion_ids == other.completion_ids
        assert one.mask == other.response_mask
        assert one.rollout.calls == other.calls
        assert one.rollout.finished == other.finished
        torch.testing.assert_close(
            torch.tensor(one.rollout.logps), torch.tensor(other.logps), rtol=0, atol=2e-5
        )
        assert one.pieces == 1 + len(other.calls)
    judge = [
        TASK.check(engine.tokenizer.decode(each.completion_ids), p.answer)
        for each, p in zip(whole, PROBLEMS, strict=True)
    ]
    assert [each.judged.reward for each in pieces] == [float(right) for right in judge]


def test_truncated_responses_are_left_out_and_long_ones_cost(engine: TransformersEngine) -> None:
    orders = Orders(task="arithmetic", max_tokens=6, mask_truncated=True, overlong_buffer=4)
    for each in responses(engine, Decoding(engine, 0), orders):
        assert len(each.rollout.completion_ids) == 6
        assert not each.rollout.finished
        assert each.mask == [0] * 6
        assert each.judged.reward == -1.0


def test_new_weights_come_between_batches_and_are_counted(engine: TransformersEngine) -> None:
    decoding = Decoding(engine, 0)
    ids = encode_prompt(engine.tokenizer, TASK, PROBLEMS[0].prompt)
    request = CompletionRequest(ids=ids, max_new_tokens=4)
    before = {name: weight.clone() for name, weight in engine.model.state_dict().items()}

    async def run() -> None:
        first = asyncio.create_task(decoding.complete(request, GREEDY))
        await asyncio.sleep(0)
        await decoding.pause()
        waits = asyncio.create_task(decoding.complete(request, GREEDY))
        await decoding.load({name: torch.zeros_like(weight) for name, weight in before.items()}, 7)
        await asyncio.sleep(0)
        assert not waits.done()
        decoding.resume()
        old, new = await first, await waits
        assert new.version == 7
        # Weights of 0 give every token the same probability.
        vocabulary = engine.model.get_input_embeddings().num_embeddings
        assert new.completion.logps == pytest.approx([-torch.tensor(float(vocabulary)).log().item()] * 4)
        assert old.version is None
        assert old.completion.logps != new.completion.logps

    try:
        asyncio.run(run())
        with pytest.raises(UserError, match="do not fit the rollout model"):
            asyncio.run(decoding.load({"nonsense": torch.zeros(1)}, 8))
    finally:
        engine.model.load_state_dict(before)


def test_a_failure_reaches_whoever_asked(engine: TransformersEngine) -> None:
    async def run() -> None:
        request = CompletionRequest(ids=[10**9], max_new_tokens=4)
        with pytest.raises(IndexError):
            await Decoding(engine, 0).complete(request, GREEDY)

    asyncio.run(run())
