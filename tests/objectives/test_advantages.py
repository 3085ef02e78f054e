"""Advantages against plain loops."""

from __future__ import annotations

import statistics

import pytest
import torch

from ctpo.objectives.advantages import dr_grpo, gae, group_normalised, rloo

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
