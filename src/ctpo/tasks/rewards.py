"""What a reward function may return for a completion, and what is made of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

from ctpo.errors import Notice, UserError

LARGEST: Final = 1e15
"""The largest reward that can be used. Standard deviations square rewards, and float32 ends at 3e38."""


class SegmentReward(float):
    """The reward of a response that was earned part by part; as a number, the sum of its parts.

    `advantages=turns` and `advantages=each-turn` compare each part with the same part of the group's other responses.
    `advantages=gae` gives a part's reward to its last token. Other advantages use the sum alone.

    Args:
        parts: of each part in order, the number of characters of the response up to its end, and its reward.
            Characters are those of the response's whole text without special tokens, tool calls and their results
            included. What follows the last part is a part without a reward.

    Raises:
        ValueError: if an end is no positive integer, or not above the one before it.

    Example:
        def reward(completion, answer):  # one point for each right line
            wanted, parts, end = answer.split(), [], 0
            for line, number in zip(completion.splitlines(keepends=True), wanted):
                end += len(line)
                parts.append((end, float(line.strip() == number)))
            return SegmentReward(parts)
    """

    parts: tuple[tuple[int, float], ...]

    def __new__(cls, parts: Iterable[tuple[int, float]]) -> SegmentReward:
        pairs = tuple((end, float(reward)) for end, reward in parts)
        ends = [end for end, _ in pairs]
        wrong = [end for end in ends if isinstance(end, bool) or not isinstance(end, int) or end < 1]
        wrong += [after for before, after in pairwise(ends) if not wrong and after <= before]
        if wrong:
            raise ValueError(
                f"a part ends at {wrong[0]!r}; use rising numbers of characters from 1, as in [(12, 1.0), (30, 0.5)]"
            )
        made = super().__new__(cls, math.fsum(reward for _, reward in pairs))
        made.parts = pairs
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.parts,)


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
        """The reward as a float, which keeps its parts if it has some; None if the completion is not scored.

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
        except OverflowError:  # an integer beyond what a float holds
            number = math.inf
        except (TypeError, ValueError, RuntimeError):
            raise UserError(
                f"{self._source}: the reward of problem {problem} is {_shown(value)}, not a number; return a float, or "
                "None for a response that is not scored"
            ) from None
        if abs(number) <= LARGEST:
            return value if isinstance(value, SegmentReward) else number
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
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    except Exception:
        return f"a {type(value).__name__}"
