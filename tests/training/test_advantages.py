"""How rewards become advantages: by TRL, which our own functions equal, and by the other estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.objectives import advantages as library
from ctpo.training.config.checks import ADVANTAGES
from ctpo.training.credit.estimators import estimated

ONE = {"generation_batch_size": 16, "per_device_train_batch_size": 16, "max_steps": 1, "logging_steps": 1}


class TwoRewards(CTPOTrainer):
    """Beside the task's own reward, one by length that judges only some responses; one response has no reward."""

    def __init__(self, *args: Any, reward_funcs: Any, **kwargs: Any) -> None:
        def correct(completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
            rewards = reward_funcs(completion_ids=completion_ids, **columns)
            return [None if i == 3 else reward for i, reward in enumerate(rewards)]

        def short(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
            return [None if i % 5 == 3 else 1 - len(ids) / 80 for i, ids in enumerate(completion_ids)]

        super().__init__(*args, reward_funcs=[correct, short], **kwargs)


def logged(trainer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards [B, K] and advantages [B] of the last rollout batch, in the order in which they were sampled."""
    columns = [list(trainer._logs["rewards"][name]) for name in trainer.reward_func_names]
    advantages = torch.tensor(list(trainer._logs["advantages"]), dtype=torch.float64)
    return torch.tensor(columns, dtype=torch.float64).T, advantages


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_several_rewards_are_aggregated_as_trl_does(fit: Callable[..., Any], aggregation: str) -> None:
    settings = {"reward_weights": [1.0, 0.5], "multi_objective_aggregation": aggregation}
    rewards, advantages = logged(fit(TwoRewards, CTPOConfig, **settings, **ONE))
    assert rewards[3].isnan().all()
    assert rewards[:, 1].isnan().sum() > 1
    expected = library.several_rewards(rewards, 4, torch.tensor([1.0, 0.5]), aggregation=aggregation)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(advantages, expected, atol=1e-4, rtol=1e-4)


def test_estimators_reach_the_loss(fit: Callable[..., Any]) -> None:
    """The advantages that a minibatch trains on are the estimator's of the rewards that were logged."""
    trainer = fit(TwoRewards, CTPOConfig, advantages="opo", reward_weights=[1.0, 0.5], **ONE)
    rewards, advantages = logged(trainer)
    batch = trainer._buffered_inputs[0]
    assert sorted(batch["advantages"].tolist()) == pytest.approx(sorted(advantages.tolist()))
    total = (rewards * torch.tensor([1.0, 0.5])).nansum(1)
    assert advantages[3] == 0
    # Its baseline is no plain mean: lengths differ.
    plain = library.dr_grpo(total, 4)
    assert not torch.allclose(plain, advantages, atol=1e-3)
    assert (plain - advantages).abs().max() < 1


def test_every_estimator() -> None:
    """By its function of the library, without the responses that nothing has judged."""
    nan = float("nan")
    rewards = torch.tensor([[1.0], [0.0], [nan], [2.0], [0.0], [0.5], [0.0], [0.0]])
    lengths = torch.tensor([3, 9, 5, 2, 7, 7, 1, 4])
    some = [0, 1, 3, 4, 5, 6, 7]
    r, n, ids = rewards[some, 0].double(), lengths[some], torch.tensor([0, 0, 0, 1, 1, 1, 1])
    expected = {
        "rloo": library.rloo(r, ids),
        "maxrl": library.max_rl(r, ids),
        "opo": library.opo(r, ids, n),
        "batch": library.batch_normalised(r),
        "reinforce++": library.reinforce_plus_plus(r, n),
        "reinforce++-baseline": library.reinforce_plus_plus_baseline(r, ids, n),
    }
    assert ["trl", *expected, "turns", "each-turn", "gae"] == list(ADVANTAGES)
    for name, values in expected.items():
        got = estimated(name, rewards, torch.ones(1), 4, lengths)
        assert got[2] == 0
        torch.testing.assert_close(got[some].double(), values, atol=1e-6, rtol=1e-6)
