"""A partner that plays a game over several turns, with both engines that work on tokens."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from ctpo.rollout import Answer, Rollout, Sampling, TransformersEngine, Turn, VLLMEngine
from ctpo.rollout.local.decoders import PaddedDecoder
from ctpo.rollout.noise import row_uniforms

from .conftest import make_model
from .test_vllm import Stepwise

PROMPTS = [[5, 6, 7], [5, 6], [9, 5, 6, 7, 8], [5, 6, 7]]
ENDS = list(range(30, 56))
"""Many tokens end a turn, so that an untrained model plays several turns within its first hundred tokens."""


class GuessANumber:
    """A guess is the number of tokens of a turn. It is answered with a hint; after the third wrong one, with nothing.

    Notes everything that it was shown.
    """

    closing_characters = ""
    stops: tuple[str, ...] = ()
    answers_ends = True

    def __init__(self, hint: int = 3) -> None:
        self.hint = hint
        self.shown: dict[int, list[Turn]] = {}

    def begin(self, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.shown = {i: [] for i in range(len(prompts))}
        self.secrets = [sum(prompt) % 9 + 2 for prompt in prompts]

    def listens_to(self, response: int) -> bool:
        return len(self.shown[response]) < 3

    def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
        return [self._answer(turn) for turn in turns]

    def _answer(self, turn: Turn) -> Answer | None:
        self.shown[turn.response].append(turn)
        distance = len(turn.ids) - self.secrets[turn.response]
        hint = [20 + len(self.shown[turn.response])] * self.hint
        return Answer(ids=hint, reward=-abs(distance) / 10, done=distance == 0)


@pytest.fixture(scope="module")
def model(chat_tokenizer: Callable[..., Any]) -> Any:
    tokenizer = chat_tokenizer()
    return make_model(tokenizer, seed=1, num_hidden_layers=2, num_attention_heads=4).eval(), tokenizer


def in_process(model: Any, limit: int, partner: Any, **options: Any) -> list[Rollout]:
    engine = TransformersEngine(*model, eos_token_ids=ENDS, **options)
    uniforms = row_uniforms(range(len(PROMPTS)), limit, seed=4)
    return engine.generate(PROMPTS, Sampling(max_new_tokens=limit), partner=partner, uniforms=uniforms)


def check(rollouts: list[Rollout], partner: GuessANumber, limit: int) -> None:
    """Everything that the partner was shown and answered stands in the response, where it belongs."""
    for i, rollout in enumerate(rollouts):
        assert len(rollout.completion_ids) == len(rollout.response_mask) == len(rollout.logps) <= limit
        at, rewards, done = 0, [], False
        for number, turn in enumerate(partner.shown[i]):
            assert turn.ended
            assert [token in ENDS for token in turn.ids] == [False] * (len(turn.ids) - 1) + [True]
            assert rollout.completion_ids[at : at + len(turn.ids)] == turn.ids
            assert all(rollout.response_mask[at : at + len(turn.ids)])
            at += len(turn.ids)
            rewards.append((at - 1, -abs(len(turn.ids) - partner.secrets[i]) / 10))
            hint = rollout.completion_ids[at : at + partner.hint]
            assert hint == [21 + number] * min(partner.hint, limit - at)
            assert not any(rollout.response_mask[at : at + len(hint)])
            at += len(hint)
            done = rewards[-1][1] == 0
        assert rollout.turn_rewards == rewards
        assert all(rollout.response_mask[at:])
        last_turn_ended = at < len(rollout.completion_ids) and rollout.completion_ids[-1] in ENDS
        assert rollout.finished == (done or last_turn_ended)
        assert rollout.finished or len(rollout.completion_ids) == limit


@pytest.mark.parametrize(("hint", "padded"), [(0, False), (1, False), (40, False), (3, True)])
def test_turns_are_answered_in_process(
    model: Any, monkeypatch: pytest.MonkeyPatch, hint: int, padded: bool
) -> None:
    if padded:
        monkeypatch.setattr("ctpo.rollout.local.engine.decoder_for", PaddedDecoder)
    endings = set()
    for limit in (5, 40, 180):
        partner = GuessANumber(hint)
        rollouts = in_process(model, limit, partner)
        check(rollouts, partner, limit)
        endings |= {(len(partner.shown[i]), rollout.finished) for i, rollout in enumerate(rollouts)}
    assert {(3, True), (1, False)} <= endings  # games to the end, and games without room


def test_each_response_is_the_same_in_any_batch(model: Any) -> None:
    partner = GuessANumber()
    together = in_process(model, 70, partner)
    for size in (1, 3):
        other = GuessANumber()
        assert [r.completion_ids for r in in_process(model, 70, other, batch_size=size)] == [
            r.completion_ids for r in together
        ]
        assert other.shown == partner.shown


class Slow(GuessANumber):
    """Takes its time, which is never the same."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience = patience

    def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
        time.sleep(random.random() / 500)
        return super().answer(turns)


@pytest.mark.parametrize("patience", [1, 7, 1000])
def test_rows_that_decode_while_others_wait_change_no_token(model: Any, patience: int) -> None:
    waited, partner = GuessANumber(), Slow(patience)
    expected, got = in_process(model, 70, waited), in_process(model, 70, partner)
    again = in_process(model, 70, Slow(patience))
    assert partner.shown == waited.shown
    for one, two, same in zip(got, expected, again, strict=True):
        assert (one.completion_ids, one.response_mask) == (two.completion_ids, two.response_mask)
        assert (one.turn_rewards, one.finished) == (two.turn_rewards, two.finished)
        torch.testing.assert_close(torch.tensor(one.logps), torch.tensor(two.logps), atol=1e-4, rtol=0)
        assert one == same  # bit for bit, however long the answers took


def test_rows_decode_while_a_partner_works(model: Any) -> None:
    """The first answer comes after five more passes through the model, which would never be without the thread."""
    passes = threading.Semaphore(0)

    class Blocked(Slow):
        def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
            if not any(self.shown.values()):
                while passes.acquire(blocking=False):
                    pass  # the passes before this turn
                assert all(passes.acquire(timeout=60) for _ in range(5))
            return super().answer(turns)

    partner = Blocked(1000)
    hook = model[0].register_forward_hook(lambda *_: passes.release())
    try:
        check(in_process(model, 70, partner), partner, 70)
    finally:
        hook.remove()


def test_an_error_of_a_partner_is_raised(model: Any) -> None:
    class Broken(Slow):
        def answer(self, turns: Sequence[Turn]) -> list[Answer | None]:
            raise ZeroDivisionError("in the partner")

    for patience in (0, 5):
        with pytest.raises(ZeroDivisionError, match="in the partner"):
            in_process(model, 70, Broken(patience))
    partner = Slow(5)
    check(in_process(model, 40, partner), partner, 40)  # the thread goes on


def test_log_probs_are_those_of_one_pass_over_all_turns(model: Any) -> None:
    for rollout in in_process(model, 70, GuessANumber(20)):
        with torch.no_grad():
            logits = model[0](torch.tensor([rollout.prompt_ids + rollout.completion_ids])).logits[0]
        logps = logits.log_softmax(-1)[len(rollout.prompt_ids) - 1 : -1]
        exact = logps.gather(-1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(-1)
        own = torch.tensor(rollout.response_mask, dtype=torch.bool)
        torch.testing.assert_close(torch.tensor(rollout.logps)[own], exact[own], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("hint", "limit"), [(3, 60), (40, 50), (0, 9)])
def test_turns_are_answered_with_vllm(model: Any, hint: int, limit: int) -> None:
    """The same greedy game as in process; a sampled one is played by the same rules."""
    engine = VLLMEngine(Stepwise(model), model[1], eos_token_ids=ENDS)
    uniforms = row_uniforms(range(len(PROMPTS)), limit, seed=4)
    partner, other = GuessANumber(hint), GuessANumber(hint)
    sampled = Sampling(max_new_tokens=limit)
    check(engine.generate(PROMPTS, sampled, partner=partner, uniforms=uniforms), partner, limit)
    greedy = Sampling(max_new_tokens=limit, temperature=0.0)
    got = engine.generate(PROMPTS, greedy, partner=partner)
    local = TransformersEngine(*model, eos_token_ids=ENDS)
    for one, two in zip(got, local.generate(PROMPTS, greedy, partner=other), strict=True):
        assert one.completion_ids == two.completion_ids
        assert (one.finished, one.turn_rewards) == (two.finished, two.turn_rewards)
    assert partner.shown == other.shown
