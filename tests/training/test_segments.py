"""Rewards of parts of a response, from a reward function alone: they become advantages of tokens."""

from __future__ import annotations

import math
import pickle
import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.errors import UserError
from ctpo.tasks import Problem, SegmentReward, Task, reward_function
from ctpo.tasks.task import judgements
from ctpo.training.credit.segments import TokenEnds, segment_rewards

ONE = {"generation_batch_size": 16, "per_device_train_batch_size": 16, "max_steps": 1, "logging_steps": 1}


def test_it_is_the_sum_of_its_parts() -> None:
    reward = SegmentReward([(3, 0.25), (9, 0.5)])
    assert (reward, pickle.loads(pickle.dumps(reward)).parts) == (0.75, ((3, 0.25), (9, 0.5)))
    assert math.isnan(SegmentReward([(1, math.nan)]))
    for parts in ([(0, 1.0)], [(4, 1.0), (4, 1.0)], [(True, 1.0)], [(1.5, 1.0)]):
        with pytest.raises(ValueError, match="use rising numbers of characters"):
            SegmentReward(parts)  # type: ignore[arg-type]


def test_a_task_passes_it_on() -> None:
    def grade(completion: str, answer: str) -> float:
        return SegmentReward([(1, 0.5), (len(completion), 0.25)])

    def problems(split: str, count: int, seed: int) -> list[Problem]:
        return []

    graded = Task(name="parts", problems=problems, check=grade)
    (given,) = reward_function(graded)(["p"], ["text"], ["a"])
    assert isinstance(given, SegmentReward)
    assert given.parts == ((1, 0.5), (4, 0.25))
    assert judgements(graded, ["text"], ["a"])[0][:2] == ("partly right", 0.75)
    rewarded = Task(name="parts", problems=problems, check=lambda c, a: True, reward=grade)
    assert isinstance(reward_function(rewarded)(["p"], ["text"], ["a"])[0], SegmentReward)


class Letters:
    """Decodes bytes one token each, so that characters of several bytes are spread over tokens; 0 is special."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(each for each in ids if each).decode(errors="replace")

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [self.decode(each, skip_special_tokens) for each in rows]


def test_a_part_ends_with_the_token_that_completes_its_last_character() -> None:
    ends = TokenEnds(Letters())
    plain = [*b"ab\ncd", 0]
    assert ends.last([1, 3, 4, 5], plain) == [0, 2, 3, 5]  # the end of the text takes the special token along
    odd = [*"aé€b".encode(), 0]
    assert ends.last([1, 2, 3, 4], odd) == [0, 2, 5, 7]
    with pytest.raises(UserError, match="ends at character 6 of a response with 5"):
        ends.last([6], plain)
    given = [[SegmentReward([(3, 1.0), (5, 2.0)]), None], [0.5, SegmentReward([(3, 4.0)])]]
    found = segment_rewards(given, [1.0, 0.5], [plain, [*b"abc"]], Letters())
    assert found == [[(2, 1.0), (5, 2.0)], [(2, 2.0)]]


def worth(text: str) -> SegmentReward | float:
    """A point for each digit in each of three parts of a text, cut where a token may have two characters."""
    cuts = sorted({len(text) // 3, 2 * len(text) // 3, len(text)} - {0})
    if not cuts:
        return 0.0
    starts = [0, *cuts]
    return SegmentReward(
        (end, float(sum(c.isdigit() for c in text[start:end])))
        for start, end in zip(starts, cuts, strict=False)
    )


class InParts(CTPOTrainer):
    """A function that gives rewards to parts, and one that judges the whole response."""

    texts: list[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        def parts(completions: list[str], **_: Any) -> list[Any]:
            InParts.texts = completions
            return [worth(text) for text in completions]

        def whole(completions: list[str], **_: Any) -> list[float]:
            return [float(len(text) % 3) for text in completions]

        super().__init__(*args, **{**kwargs, "reward_funcs": [parts, whole]})


@pytest.mark.parametrize(("name", "extra"), [("turns", {}), ("each-turn", {"dynamic_sampling_rounds": 1})])
def test_advantages_are_those_of_a_plain_loop(
    fit: Callable[..., Any], name: str, extra: dict[str, Any]
) -> None:
    weights = [2.0, 0.5]
    settings = {"advantages": name, "reward_weights": weights, "max_completion_length": 16, **extra, **ONE}
    trainer = fit(InParts, CTPOConfig, **settings)
    (batch,) = [SimpleNamespace(**each) for each in trainer._buffered_inputs]
    mask = batch.completion_mask * getattr(batch, "tool_mask", torch.ones_like(batch.completion_mask))
    rows, turns = [], []
    for ids, present in zip(batch.completion_ids.tolist(), batch.completion_mask.tolist(), strict=True):
        own = ids[: sum(present)]
        text = trainer.processing_class.decode(own, skip_special_tokens=True)
        reward = worth(text)
        parts = list(reward.parts) if isinstance(reward, SegmentReward) else []
        earned = [weights[0] * each for _, each in parts]
        places, part = [], 0
        for place in range(len(own)):
            places.append(part)
            read = trainer.processing_class.decode(own[: place + 1], skip_special_tokens=True)
            if part < len(parts) - 1 and len(read) >= parts[part][0]:
                part += 1
        last = max(places, default=0)
        merged = [
            sum(e for e, p in zip(earned, range(len(earned)), strict=True) if min(p, last) == k)
            for k in range(last + 1)
        ]
        merged[-1] += weights[1] * (len(text) % 3)
        rows.append(merged)
        turns.append(places)
    expected = torch.zeros(mask.shape)
    for row, own_rewards in enumerate(rows):
        group = rows[row // 4 * 4 : row // 4 * 4 + 4]
        for k in range(len(own_rewards)):
            if name == "turns":
                values = [sum(other[min(k, len(other) - 1) :]) for other in group]
                mine = sum(own_rewards[k:])
            else:
                values = [other[k] for other in group if len(other) > k]
                mine = own_rewards[k]
            if len(values) > 1:
                value = (mine - statistics.mean(values)) / (statistics.stdev(values) + 1e-4)
                for place, turn in enumerate(turns[row]):
                    if turn == k and mask[row, place]:
                        expected[row, place] = value
    assert (expected != 0).any()
    torch.testing.assert_close(batch.advantages, expected, atol=1e-4, rtol=1e-4)
