"""Rewards that are None, not finite, or no numbers, from several reward functions: one notice or one line each."""

from __future__ import annotations

import asyncio
import functools
import math
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.errors import Notice, UserError
from ctpo.objectives import advantages as library
from ctpo.training.sampling.checked import CheckedRewards

ONE = {"generation_batch_size": 16, "per_device_train_batch_size": 16, "max_steps": 1, "logging_steps": 1}
NUMBERS = [1, True, 0.5, Fraction(1, 2), Decimal("0.25"), np.float32(2), np.array(3.0), torch.tensor([4.0])]
USELESS = [math.nan, math.inf, -math.inf, np.nan, torch.tensor(math.inf), 1e30, 10**400]


def returning(value: Any) -> Callable[..., Any]:
    def own(prompts: list[str], **_: Any) -> Any:
        return value

    return own


def call(value: Any, **columns: Any) -> Any:
    """What the checked function returns if the user's returns this."""
    function: Any = CheckedRewards([returning(value)], ["own"]).functions[0]
    return function(**{"prompts": ["2+2=", "3+3="], "id": ["p1", "p2"], **columns})


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers(value: Any) -> None:
    assert call([value, None]) == [float(value), None]


def test_arrays_and_tensors_hold_one_reward_per_completion() -> None:
    assert call(np.array([1, 2])) == call(torch.tensor([1.0, 2.0])) == call(x for x in (1, 2)) == [1.0, 2.0]


@pytest.mark.parametrize("value", USELESS)
def test_what_cannot_be_used_is_not_scored_and_said_once(value: Any) -> None:
    function: Any = CheckedRewards([returning([1.0, value])], ["own"]).functions[0]
    columns = {"prompts": ["2+2=", "3+3="], "id": ["p1", "p2"]}
    expected = (
        r"reward function 'own' \(.*test_rewards.py line \d+\): the reward of problem p2 is .* not scored"
    )
    with pytest.warns(Notice, match=expected):
        assert function(**columns) == [1.0, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(**columns) == [1.0, None]


@pytest.mark.parametrize("value", ["good", (1.0, "why"), b"1", 1j, {"score": 1}, torch.ones(2), [1.0]])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(
        UserError, match=r"reward function 'own' \(.*\): the reward of problem p1 is .*, not a"
    ):
        call([value, 1.0])
    with pytest.raises(UserError, match="the reward of problem '2\\+2=' is"):
        call([value, 1.0], id=None)


@pytest.mark.parametrize("value", [None, 1.0, "good", {"p1": 1.0}])
def test_what_is_no_list(value: Any) -> None:
    with pytest.raises(
        UserError, match=r"reward function 'own' .* returned a \w+ for 2 completions; return a"
    ):
        call(value)


def test_another_number_of_rewards() -> None:
    with pytest.raises(UserError, match="returned 3 rewards for 2 completions"):
        call([1.0, 2.0, 3.0])


def test_every_form_of_function() -> None:
    """Partial functions, objects that can be called, and coroutine functions."""

    async def later(prompts: list[str], **_: Any) -> list[float]:
        return [1.0, math.inf]

    class Judge:
        def __call__(self, prompts: list[str], **_: Any) -> list[float]:
            return [2.0, math.inf]

    checked: list[Any] = CheckedRewards(
        [functools.partial(returning([3.0, math.inf])), Judge(), later], ["partial", "Judge", "later"]
    ).functions
    columns = {"prompts": ["2+2=", "3+3="]}
    with pytest.warns(
        Notice, match=r"'Judge' \(.*test_rewards.py line \d+\): the reward of problem '3\+3=' is inf"
    ):
        assert checked[1](**columns) == [2.0, None]
    with pytest.warns(Notice, match="partial"):
        assert checked[0](**columns) == [3.0, None]
    with pytest.warns(Notice, match="later"):
        assert asyncio.run(checked[2](**columns)) == [1.0, None]


def test_reward_models_are_checked_after_the_call() -> None:
    rewards = torch.tensor([[1.0, math.inf], [math.nan, 2.0], [3.0, math.nan]])
    checked = CheckedRewards([returning([]), torch.nn.Linear(1, 1)], ["own", "model"])
    with pytest.warns(Notice, match="reward model 'model': .* of response 1 of the batch is inf"):
        usable = checked.usable(rewards)
    torch.testing.assert_close(
        usable, torch.tensor([[1.0, math.nan], [math.nan, 2.0], [3.0, math.nan]]), equal_nan=True
    )


class Poisoned(CTPOTrainer):
    """One function gives NaN, infinity and huge rewards to some responses, and another scores them all."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        def odd(completion_ids: list[list[int]], **_: Any) -> list[Any]:
            odd = {1: math.nan, 2: math.inf, 7: 1e38, 8: None}
            return [odd.get(i, np.float32(i % 3)) for i in range(len(completion_ids))]

        async def short(completion_ids: list[list[int]], **_: Any) -> list[Any]:
            return [None if i in (2, 12, 13, 14, 15) else i / 10 for i in range(len(completion_ids))]

        super().__init__(*args, **{**kwargs, "reward_funcs": [odd, short]})


@pytest.mark.parametrize("name", ["trl", "rloo", "reinforce++-baseline"])
def test_one_function_cannot_poison_the_batch(fit: Callable[..., Any], name: str) -> None:
    """Advantages are those of the usable rewards alone, and the run goes on."""
    with pytest.warns(Notice, match="'odd' .* is nan"):
        trainer = fit(Poisoned, CTPOConfig, advantages=name, max_completion_length=16, **ONE)
    one = [math.nan if i in (1, 2, 7, 8) else i % 3 for i in range(16)]
    other = [math.nan if i in (2, 12, 13, 14, 15) else i / 10 for i in range(16)]
    rewards = torch.tensor([one, other], dtype=torch.float64).T
    total = rewards.nansum(dim=1).masked_fill(rewards.isnan().all(dim=1), math.nan)
    scored = ~total.isnan()
    expected = torch.zeros(16, dtype=torch.float64)
    if name == "trl":
        expected = library.several_rewards(rewards, 4, torch.ones(2))
    elif name == "rloo":
        expected[scored] = library.rloo(total[scored], (torch.arange(16) // 4)[scored])
    advantages = torch.tensor(list(trainer._logs["advantages"]), dtype=torch.float64)
    assert advantages[2] == 0
    if name == "reinforce++-baseline":  # its mean is over tokens
        assert advantages.isfinite().all()
        assert advantages[scored].abs().min() > 0
    else:
        torch.testing.assert_close(advantages, expected, atol=1e-3, rtol=1e-3)
    assert all(value.isfinite().all() for value in trainer.model.parameters())
