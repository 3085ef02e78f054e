"""The reward functions of a run: the task's own, with a count of its verdicts, and the overlong punishment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from trl.rewards import get_soft_overlong_punishment

from ctpo.tasks import Task, reward_function
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.recipe import Recipe

OVERLONG = "overlong"

Verdicts = Mapping[str, int]
"""Number of responses by the judge's verdict."""


def reward_functions(
    task: Task, recipe: Recipe, config: CTPOConfig, account_for: Callable[[Verdicts], None]
) -> list[Callable[..., list[float | None]]]:
    """The reward functions in TRL's form. The reward of a response is their sum.

    Args:
        account_for: gets the verdicts on each batch of responses, if the task's judge counts them.
    """
    functions = [_accounted(task, account_for)]
    if recipe.overlong_buffer is not None:
        # 0 up to max_completion_length − overlong_buffer tokens, then falling linearly to −1 (DAPO, equation 13).
        punishment = get_soft_overlong_punishment(config.max_completion_length, recipe.overlong_buffer)
        punishment.__name__ = OVERLONG
        functions.append(punishment)
    return functions


def _accounted(task: Task, account_for: Callable[[Verdicts], None]) -> Callable[..., list[float | None]]:
    judge = reward_function(task)
    own = getattr(task.check, "account", None)
    account: Counter[str] = Counter() if own is None else own

    def reward(*args: Any, **kwargs: Any) -> list[float | None]:
        before = Counter(account)
        rewards = judge(*args, **kwargs)
        account_for(dict(account - before))
        return rewards

    reward.__name__ = reward.__qualname__ = task.name
    return reward
