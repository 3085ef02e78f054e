"""Advantages per turn, from the rewards that an environment gave to single turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.objectives import advantages as library
from ctpo.tasks.task import TURN_REWARDS

TurnRewards = Sequence[tuple[int, float]]


def turn_rewards_of(inputs: Sequence[Mapping[str, Any]], name: str) -> list[TurnRewards]:
    """The turn rewards of each response, from the rows to which TRL has added what the rollout function returned.

    Args:
        name: the setting that needs them, "turns" or "each-turn".

    Raises:
        UserError: if there are none, because no environment gives rewards.
    """
    if not all(TURN_REWARDS in row for row in inputs):
        raise UserError(
            f"advantages={name}: the responses have no rewards per turn; give the task an environment, or a "
            f"reward function that returns SegmentReward, or a rollout_func that returns {TURN_REWARDS}, or set "
            "advantages=trl"
        )
    return [row[TURN_REWARDS] for row in inputs]


def turn_numbers(turn_rewards: Sequence[TurnRewards], length: int) -> Tensor:
    """[B, length] the turn of each token, from 0. A turn ends with the token at which its reward was given.

    A tool call within a turn does not end it. Tokens after the last reward are a turn of their own.
    """
    ends = torch.zeros(len(turn_rewards), length + 1, dtype=torch.long)
    for row, rewards in enumerate(turn_rewards):
        for index, _ in rewards:
            ends[row, min(index + 1, length)] = 1
    return ends.cumsum(dim=1)[:, :length]


def rewards_by_turn(
    turn_rewards: Sequence[TurnRewards], mask: Tensor, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """The reward of each turn [B, K], and how many turns each response has [B].

    Args:
        mask: [B, T] true on tokens that the model sampled.
        width: K; None for as many as there are turns.
    """
    numbers = turn_numbers(turn_rewards, mask.shape[1])
    turns = torch.where(mask.cpu(), numbers + 1, torch.zeros_like(numbers)).amax(dim=1)
    rewards = torch.zeros(len(turn_rewards), max(int(turns.max()), 1), dtype=torch.float64)
    for row, pairs in enumerate(turn_rewards):
        last = max(int(turns[row]) - 1, 0)
        for index, reward in pairs:
            rewards[row, min(int(numbers[row, index]), last)] += reward
    return rewards, turns


def rewards_by_token(turn_rewards: Sequence[TurnRewards] | None, totals: Tensor, mask: Tensor) -> Tensor:
    """[B, T] the reward at each token, in float64 on the CPU.

    The reward of a turn comes with the last sampled token up to where it was given. Whatever else a response earned
    comes with its last sampled token, and so does everything if there are no rewards per turn.

    Args:
        turn_rewards: of each response; None if no environment gives any.
        totals: [B] the rewards of the responses; NaN for one that is not scored, whose rewards are all NaN.
        mask: [B, T] true on tokens that the model sampled.
    """
    mask, totals = mask.cpu(), totals.cpu().double()
    rewards = torch.zeros(mask.shape, dtype=torch.float64)
    for row, (own, total) in enumerate(zip(mask, totals.tolist(), strict=True)):
        places = own.nonzero()[:, 0]
        if not len(places):
            continue
        for index, reward in () if turn_rewards is None else turn_rewards[row]:
            before = int(torch.searchsorted(places, index, right=True)) - 1
            rewards[row, places[max(before, 0)]] += reward
            total -= reward
        rewards[row, places[-1]] += total
    return torch.where(totals.isnan().unsqueeze(-1), totals.unsqueeze(-1), rewards)


def turn_advantages(
    rewards: Tensor, turns: Tensor, totals: Tensor, group: int, *, name: str, scale: str
) -> Tensor:
    """[B, K] the advantage of each turn: that of `by_turn` or `each_turn`, divided as TRL divides rewards.

    Whatever else a response earned than its turns' rewards, such as a punishment of its length, counts in its last
    turn. So the rewards of the turns sum to the response's whole reward.

    Args:
        rewards: [B, K] of the turns, of all processes. The groups lie one after the other.
        turns: [B] how many turns each response has.
        totals: [B] the rewards of the responses; NaN for one that is not scored, whose advantages are 0.
        group: responses per prompt.
        name: "turns" counts the return from a turn on, "each-turn" the turn's own reward alone.
        scale: TRL's `scale_rewards`: "group", "batch" or "none".
    """
    last = (turns - 1).clamp(min=0).unsqueeze(-1)
    rest = totals - rewards.sum(dim=1)
    rewards = rewards.scatter_add(1, last, rest.unsqueeze(-1))
    turns = turns.clamp(min=1)

    def estimator(values: Tensor, groups: Tensor | int) -> Tensor:
        return library.several_rewards(values.unsqueeze(-1), groups, scale=scale)

    if name == "each-turn":
        rewards = torch.where(totals.isnan().unsqueeze(-1), torch.nan, rewards)
        return library.each_turn(rewards, turns, group, estimator=estimator)

    def of_returns(returns: Tensor, groups: Tensor | int) -> Tensor:
        return estimator(torch.where(totals.isnan(), totals, returns), groups)

    return library.by_turn(rewards, turns, group, estimator=of_returns)


def spread(advantages: Tensor, turns: Tensor, mask: Tensor) -> Tensor:
    """[B, T] the advantage of each token's turn, and 0 on tokens that the model did not sample.

    Args:
        advantages: [B, K] of the turns.
        turns: [B, T] the number of each token's turn, as `turn_numbers` gives it.
        mask: [B, T] true on tokens that the model sampled.
    """
    values = advantages.gather(1, turns.clamp(max=advantages.shape[1] - 1))
    return torch.where(mask.cpu(), values, torch.zeros_like(values))
