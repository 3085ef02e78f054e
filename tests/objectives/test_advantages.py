"""Advantages against plain loops."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ctpo.objectives.advantages import (
    batch_normalised,
    by_turn,
    dr_grpo,
    each_turn,
    gae,
    group_normalised,
    max_rl,
    opo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    returns_to_go,
    rloo,
    several_rewards,
)

REWARDS = [1.0, 0.0, 0.5, 0.1, 0.1, 0.1, 2.0, -1.0, 7.0]
GROUPS = [5, -2, 5, 9, 9, 9, -2, 5, 1]  # any ids, any order; one group of one


def members(i: int) -> list[float]:
    return [r for r, g in zip(REWARDS, GROUPS, strict=True) if g == GROUPS[i]]


def expected(kind: str, i: int) -> float:
    group = members(i)
    if len(set(group)) == 1:
        return 0.0
    mean = statistics.fmean(group)
    if kind == "rloo":
        return REWARDS[i] - (sum(group) - REWARDS[i]) / (len(group) - 1)
    return REWARDS[i] - mean if kind == "dr_grpo" else (REWARDS[i] - mean) / statistics.stdev(group)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["group_normalised", "dr_grpo", "rloo"])
def test_group_baselines(kind: str, dtype: torch.dtype) -> None:
    function = {"group_normalised": group_normalised, "dr_grpo": dr_grpo, "rloo": rloo}[kind]
    rewards = torch.tensor(REWARDS, dtype=dtype)
    got = function(rewards, torch.tensor(GROUPS))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert got.tolist() == pytest.approx([expected(kind, i) for i in range(9)], rel=tolerance, abs=tolerance)
    # 0.1 three times has a mean that is not 0.1 in binary; the advantage is 0 all the same.
    assert got[3:6].tolist() == [0.0, 0.0, 0.0]
    assert got[8] == 0.0


@pytest.mark.parametrize("function", [group_normalised, dr_grpo, rloo])
def test_consecutive_groups_and_per_token_rewards(function: object) -> None:
    assert callable(function)
    rewards = torch.tensor([1.0, 0.0, 3.0, 3.5])
    by_size, by_ids = function(rewards, 2), function(rewards, torch.tensor([0, 0, 1, 1]))
    assert torch.equal(by_size, by_ids)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]])
    spread = torch.tensor([[0.5, 0.5, 9], [0.0, 9, 9], [1.0, 1, 1], [9, 9, 3.5]])
    per_token = function(spread, 2, response_mask=mask)
    torch.testing.assert_close(per_token, torch.where(mask != 0, by_size[:, None], 0.0))


LENGTHS = [3, 8, 1, 2, 2, 5, 6, 4, 7]


def by_tokens(values: list[float]) -> list[float]:
    """(v − mean) / std over a list that holds the value of each response once per token."""
    tokens = [v for v, n in zip(values, LENGTHS, strict=True) for _ in range(n)]
    return [(v - statistics.fmean(tokens)) / statistics.stdev(tokens) for v in values]


def test_estimators_against_loops() -> None:
    rewards, groups = torch.tensor(REWARDS, dtype=torch.float64), torch.tensor(GROUPS)
    lengths = torch.tensor(LENGTHS)
    of_group = [[j for j in range(9) if GROUPS[j] == GROUPS[i]] for i in range(9)]
    equal = [len({REWARDS[j] for j in group}) == 1 for group in of_group]
    baseline = [
        sum(LENGTHS[j] * REWARDS[j] for j in group) / sum(LENGTHS[j] for j in group) for group in of_group
    ]
    expected = [0.0 if same else r - b for r, b, same in zip(REWARDS, baseline, equal, strict=True)]
    assert opo(rewards, groups, lengths).tolist() == pytest.approx(expected)
    assert opo(rewards, groups, lengths)[3:6].tolist() == [0.0, 0.0, 0.0]

    mean, spread = statistics.fmean(REWARDS), statistics.stdev(REWARDS)
    assert batch_normalised(rewards).tolist() == pytest.approx([(r - mean) / spread for r in REWARDS])
    assert batch_normalised(rewards, lengths).tolist() == pytest.approx(by_tokens(REWARDS))
    assert reinforce_plus_plus(rewards, lengths).tolist() == pytest.approx(by_tokens(REWARDS))
    centred = [REWARDS[i] - statistics.fmean(members(i)) for i in range(9)]
    got = reinforce_plus_plus_baseline(rewards, groups, lengths)
    assert got.tolist() == pytest.approx(by_tokens(centred))


def test_maxrl_is_the_gradient_of_the_log_of_the_share_solved() -> None:
    """Σ_i A_i of the right responses over n is 1 − p, whatever p: n/k · (1 − k/n) · k/n."""
    for solved in range(1, 9):
        rewards = torch.tensor([1.0] * solved + [0.0] * (8 - solved), dtype=torch.float64)
        got = max_rl(rewards, 8)
        p = solved / 8
        assert got.tolist() == pytest.approx([(1 - p) / p] * solved + [-1.0] * (8 - solved))
    assert max_rl(torch.zeros(4), 4).tolist() == [0.0] * 4
    with pytest.raises(ValueError, match=r"rewards: -1 is negative; MaxRL"):
        max_rl(torch.tensor([1.0, -1.0]), 2)


def test_masks_give_lengths_and_places() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]])
    rewards, lengths = torch.tensor([1.0, 0.0, 3.0, 3.5], dtype=torch.float64), mask.sum(-1)
    spread = torch.where(mask != 0, (rewards / lengths)[:, None], 9.0)
    cases = {
        opo: ((2, lengths), (2,)),
        max_rl: ((2,), (2,)),
        reinforce_plus_plus: ((lengths,), ()),
        reinforce_plus_plus_baseline: ((2, lengths), (2,)),
        batch_normalised: ((), ()),
    }
    for function, (with_lengths, without) in cases.items():
        per_token = function(spread, *without, response_mask=mask)
        per_row = function(rewards, *with_lengths)
        torch.testing.assert_close(per_token, torch.where(mask != 0, per_row[:, None], 0.0))
    with pytest.raises(ValueError, match=r"lengths: None; expected \(4,\), or a response_mask"):
        opo(rewards, 2)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_several_rewards_against_loops(scale: str) -> None:
    nan = float("nan")
    rewards = [[1.0, 0.0], [0.0, nan], [nan, 0.5], [nan, nan], [1.0, 1.0], [0.0, 3.0], [0.5, 0.5], [0.0, 1.0]]
    weights, groups = [1.0, 0.5], [0, 0, 0, 0, 1, 1, 1, 1]
    judged = [i for i in range(8) if i != 3]
    total = {i: sum(w * r for r, w in zip(rewards[i], weights, strict=True) if r == r) for i in judged}

    def of_group(i: int) -> list[float]:
        return [total[j] for j in judged if groups[j] == groups[i]]

    spread = {
        "group": lambda i: statistics.stdev(of_group(i)) + 1e-4,
        "batch": lambda i: statistics.stdev(total.values()) + 1e-4,
        "none": lambda i: 1.0,
    }[scale]
    want = [(total[i] - statistics.fmean(of_group(i))) / spread(i) if i in total else 0.0 for i in range(8)]
    tensors = (torch.tensor(rewards, dtype=torch.float64), 4, torch.tensor(weights))
    assert several_rewards(*tensors, scale=scale).tolist() == pytest.approx(want)

    normal = {}
    for i in judged:
        normal[i] = 0.0
        for k, weight in enumerate(weights):
            column = [
                rewards[j][k] for j in range(8) if groups[j] == groups[i] and rewards[j][k] == rewards[j][k]
            ]
            if rewards[i][k] == rewards[i][k]:
                std = statistics.stdev(column) + 1e-4
                normal[i] += weight * (rewards[i][k] - statistics.fmean(column)) / std
    mean, std = statistics.fmean(normal.values()), statistics.stdev(normal.values()) + 1e-4
    want = [(normal[i] - mean) / std if i in normal else 0.0 for i in range(8)]
    got = several_rewards(*tensors, aggregation="normalize_then_sum", scale=scale)
    assert got.tolist() == pytest.approx(want)


@pytest.mark.parametrize("length", [1, 2, 7, 33])
@pytest.mark.parametrize("per_token", [False, True])
def test_gae_equals_the_recursion(length: int, per_token: bool) -> None:
    g = torch.Generator().manual_seed(length)
    values = torch.randn(4, length, generator=g, dtype=torch.float64)
    mask = torch.rand(4, length, generator=g) < 0.6
    mask[3] = False
    rewards = torch.randn((4, length) if per_token else (4,), generator=g, dtype=torch.float64)
    discount, trace = 0.97, 0.9
    values[~mask] = torch.nan
    got = gae(rewards, values, mask, discount=discount, trace=trace)
    for i in range(4):
        where = [t for t in range(length) if mask[i, t]]
        advantage, following = 0.0, 0.0
        for k, t in reversed(list(enumerate(where))):
            last = k == len(where) - 1
            reward = rewards[i, t].item() if per_token else rewards[i].item() * last
            delta = reward + discount * following - values[i, t].item()
            advantage = delta + discount * trace * advantage
            following = values[i, t].item()
            assert got[i, t].item() == pytest.approx(advantage, rel=1e-10, abs=1e-12)
    assert not got[~mask].any()


def test_differences_too_small_to_square_stay_finite() -> None:
    got = group_normalised(torch.tensor([0.0, 1e-30, 1.0, 2.0]), 2)
    assert got.isfinite().all()
    assert got[1] > 0 > got[0]


def test_gae_of_nothing() -> None:
    empty = torch.zeros(2, 0)
    assert gae(torch.zeros(2), empty, empty > 0).shape == (2, 0)


def test_rewards_and_values_receive_no_gradient() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.25], requires_grad=True)
    values = torch.rand(2, 2, requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    found = [function(rewards, 2) for function in (group_normalised, dr_grpo, rloo)]
    found.append(gae(rewards.view(2, 2), values, mask))
    assert not any(advantages.requires_grad for advantages in found)


def test_returns_of_turns_by_hand() -> None:
    rewards, turns = (
        torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 9.0], [9.0, 9.0, 9.0]]),
        torch.tensor([3, 1, 0]),
    )
    assert returns_to_go(rewards, turns).tolist() == [[7, 6, 4], [3, 3, 3], [0, 0, 0]]
    assert returns_to_go(rewards, turns, discount=0.5).tolist()[0] == [3, 4, 4]
    assert returns_to_go(rewards, turns, discount=0.0).tolist()[0] == [1, 2, 4]


@pytest.mark.parametrize("estimator", [group_normalised, dr_grpo, rloo])
def test_a_reward_in_the_last_turn_is_that_of_the_response(estimator: Callable[..., torch.Tensor]) -> None:
    rewards, turns = torch.rand(8), torch.tensor([1, 3, 2, 2, 1, 1, 3, 2])
    at_the_end = torch.zeros(8, 3).scatter(1, turns[:, None] - 1, rewards[:, None])
    got = by_turn(at_the_end, turns, 4, estimator=estimator)
    torch.testing.assert_close(got, estimator(rewards, 4)[:, None].expand(8, 3))


def test_turns_are_compared_with_the_same_turn_of_the_group() -> None:
    rewards, turns = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 9.0]]), torch.tensor([2, 2, 1])
    got = by_turn(rewards, turns, 3, estimator=dr_grpo)
    # returns: (1, 0), (1, 1), (0.5, and so on); means 5/6 and 1/2
    torch.testing.assert_close(got, torch.tensor([[1 / 6, -0.5], [1 / 6, 0.5], [-1 / 3, 0.0]]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(2), torch.ones(2)), "expected [B, K], [B]"),
        ((torch.zeros(2, 3), torch.ones(3)), "expected [B, K], [B]"),
        ((torch.zeros(2, 3), torch.ones(2), 1.5), "must lie in [0, 1]"),
    ],
)
def test_turns_that_do_not_fit(arguments: Any, words: str) -> None:
    rewards, turns, *discount = arguments
    with pytest.raises(ValueError, match=re.escape(words)):
        returns_to_go(rewards, turns.long(), **({"discount": discount[0]} if discount else {}))


def test_each_turn_is_its_column_among_those_that_have_it() -> None:
    rewards = torch.tensor([[1.0, 0.0, 9.0], [0.0, 2.0, 3.0], [5.0, 4.0, 7.0], [2.0, 9.0, 9.0]])
    turns = torch.tensor([2, 3, 2, 1])
    got = each_turn(rewards, turns, 4, estimator=dr_grpo)
    expected = torch.tensor([[-1.0, -2.0, 0.0], [-2.0, 0.0, 0.0], [3.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(got, expected)  # column means: 2 of four, 2 of three; the third turn is alone
    shuffled = torch.tensor([3, 1, 0, 2])
    scattered = each_turn(rewards[shuffled], turns[shuffled], torch.tensor([7, 7, 7, 7]), estimator=dr_grpo)
    torch.testing.assert_close(scattered, got[shuffled])
    # Where all have all turns, a column is what `group_normalised` gives for it.
    full = each_turn(rewards, torch.full((4,), 3), 2)
    torch.testing.assert_close(full, torch.stack([group_normalised(c, 2) for c in rewards.T], dim=1))
    with pytest.raises(ValueError, match="expected"):
        each_turn(rewards[0], turns, 4)
