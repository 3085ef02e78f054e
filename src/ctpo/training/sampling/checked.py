"""Reward functions of a user's own, whose mistakes are reported in one line and do not harm the rest of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import is_async_callable

from ctpo.errors import UserError
from ctpo.tasks.guard import place_of_function
from ctpo.tasks.rewards import LARGEST, RewardReader, SegmentReward

RewardFunction = Callable[..., Any]


class CheckedRewards:
    """The reward functions of a trainer, each of whose rewards is a finite number or None.

    None is TRL's word for a response that a function does not score. A reward that is NaN or infinite would make the
    advantages of its group useless, or those of the whole batch. It is read as None, with a notice of the first one.

    Args:
        functions: as TRL takes them: functions, callable objects, coroutine functions, or reward models.
        names: one per function, as TRL logs them.
    """

    def __init__(self, functions: Sequence[RewardFunction | nn.Module], names: Sequence[str]) -> None:
        self._models = {
            column: RewardReader(f"reward model {name!r}")
            for column, (each, name) in enumerate(zip(functions, names, strict=True))
            if isinstance(each, nn.Module)
        }
        self.given: list[list[float | None]] = [[] for _ in names]
        """What each function gave in its last call, with the parts of rewards; empty for reward models."""
        self.in_parts = False
        """Whether a function has given rewards to parts of a response."""
        self.functions: list[RewardFunction | nn.Module] = [
            each if isinstance(each, nn.Module) else _checked(each, name, partial(self._keep, column))
            for column, (each, name) in enumerate(zip(functions, names, strict=True))
        ]
        """The functions to give to TRL in place of the others."""

    def _keep(self, column: int, values: list[float | None]) -> list[float | None]:
        self.given[column] = values
        self.in_parts = self.in_parts or any(isinstance(value, SegmentReward) for value in values)
        return values

    def usable(self, rewards: Tensor) -> Tensor:
        """[B, K] the rewards, with NaN in place of those of reward models that cannot be used."""
        for column, reader in self._models.items():
            useless = ~(rewards[:, column].abs() <= LARGEST)
            if useless.any():
                row = int(useless.nonzero()[0, 0])
                reader.notice(float(rewards[row, column]), f"of response {row + 1} of the batch")
                rewards[useless, column] = torch.nan
        return rewards


def _checked(
    function: RewardFunction, name: str, keep: Callable[[list[float | None]], list[float | None]]
) -> RewardFunction:
    """The function, returning a list of floats and None, which is kept.

    Raises:
        UserError: when it is called, if it returns something else than one number per completion.
    """
    source = f"reward function {name!r} ({place_of_function(function)})"
    reader = RewardReader(source)

    def read(returned: Any, columns: Mapping[str, Any]) -> list[float | None]:
        prompts = columns["prompts"]
        if returned is None or isinstance(returned, str | bytes | Mapping) or not _is_iterable(returned):
            raise UserError(
                f"{source} returned a {type(returned).__name__} for {len(prompts)} completions; return a list with "
                "one reward per completion"
            )
        values = list(returned)
        if len(values) != len(prompts):
            raise UserError(
                f"{source} returned {len(values)} rewards for {len(prompts)} completions; return one per completion"
            )
        problems = columns.get("id") or [repr(_beginning(prompt)) for prompt in prompts]
        return keep([reader.read(value, problem) for value, problem in zip(values, problems, strict=True)])

    if is_async_callable(function):

        async def reward(**columns: Any) -> list[float | None]:
            return read(await function(**columns), columns)
    else:

        def reward(**columns: Any) -> list[float | None]:  # type: ignore[misc]
            return read(function(**columns), columns)

    reward.__name__ = reward.__qualname__ = name
    return reward


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _beginning(prompt: Any) -> str:
    """The first characters of a prompt, by which it can be recognised."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "") if prompt else "")
    return text[:60]
