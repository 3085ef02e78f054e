"""The rewards of a run: the task's own, an account of its judge, and the punishment of overlong responses."""

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


def reward_functions(
    task: Task, recipe: Recipe, config: CTPOConfig, tell: Callable[[Verdicts], None]
) -> list[Callable[..., list[float]]]:
    """Reward functions in TRL's convention; their sum is the reward.

    Args:
        tell: told how the task's judge found a batch of responses, where it keeps an account.
    """
    functions = [_accounted(task, tell)]
    if recipe.overlong_buffer is not None:
        # 0 up to max_completion_length − overlong_buffer tokens, then down a line to −1 (DAPO, eq. 13).
        punishment = get_soft_overlong_punishment(config.max_completion_length, recipe.overlong_buffer)
        punishment.__name__ = OVERLONG
        functions.append(punishment)
    return functions


def _accounted(task: Task, tell: Callable[[Verdicts], None]) -> Callable[..., list[float]]:
    judge = reward_function(task)
    own = getattr(task.check, "account", None)
    account: Counter[str] = Counter() if own is None else own

    def reward(*args: Any, **kwargs: Any) -> list[float]:
        before = Counter(account)
        rewards = judge(*args, **kwargs)
        tell(dict(account - before))
        return rewards

    reward.__name__ = reward.__qualname__ = task.name
    return reward
