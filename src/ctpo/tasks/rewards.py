"""What a reward function may return for a completion, and what is made of it."""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

from ctpo.errors import Notice, UserError

LARGEST: Final = 1e15
"""The largest reward that can be used. Standard deviations square rewards, and float32 ends at 3e38."""


class RewardReader:
    """Reads the rewards that one function returns.

    A reward is anything that is a number: a float, an integer, a boolean, a fraction, or an array or tensor of one
    element. None stands for a completion that is not scored, as in TRL. A reward that is NaN, infinite or larger
    than 1e15 is read as None. Of the first one there is a notice that names its source.

    Args:
        source: the function, as messages name it: "task 'dates'".
    """

    def __init__(self, source: str) -> None:
        self._source, self._noticed = source, False

    def read(self, value: Any, problem: str) -> float | None:
        """The reward as a float; None if the completion is not scored.

        Args:
            value: what the function returned for a completion.
            problem: the name of its problem, for messages.

        Raises:
            UserError: if the value is no number.
        """
        if value is None:
            return None
        try:
            number = float("text" if isinstance(value, str | bytes) else value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise UserError(
                f"{self._source}: the reward of problem {problem} is {_shown(value)}, not a number; return a float, or "
                "None for a response that is not scored"
            ) from None
        if abs(number) <= LARGEST:
            return number
        self.notice(number, problem)
        return None

    def notice(self, number: float, problem: str) -> None:
        """Say, the first time, that a reward cannot be used."""
        if not self._noticed:
            self._noticed = True
            why = "not finite" if not math.isfinite(number) else f"beyond {LARGEST:.0e}"
            warnings.warn(
                f"{self._source}: the reward of problem {problem} is {number}, which is {why}; responses with such "
                "rewards are not scored",
                Notice,
                stacklevel=3,
            )


def _shown(value: Any) -> str:
    """A value as messages show it, even if it cannot show itself."""
    try:
        return repr(value)[:200]
    except Exception:
        return f"a {type(value).__name__}"
