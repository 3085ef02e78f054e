"""The order in which training problems are drawn, where a rollout batch may need more of them than it trains on.

TRL's sampler fixes the prompts of every rollout batch beforehand. Here they are drawn as they are needed: in the same
order if there is no curriculum, and otherwise from buckets of easy, normal and hard problems with given shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ctpo.errors import UserError
from ctpo.training.config.groups import BUCKETS, curriculum_settings

_EASY, _NORMAL, _HARD = range(3)
_MEMORY: Final = 0.5
"""The weight of the newest group in the running estimate of a problem's solve rate."""


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Shares of the buckets among the problems drawn, and which solve rates belong to which bucket."""

    shares: tuple[float, float, float]
    """Of easy, normal and hard problems; not all 0. They count relative to their sum."""
    easy_from: float = 0.8
    """A problem with at least this solve rate is easy."""
    hard_to: float = 0.2
    """A problem with at most this solve rate is hard."""

    @staticmethod
    def of(knobs: Mapping[str, float]) -> Curriculum:
        """The curriculum that the setting `curriculum` describes.

        Raises:
            ValueError: as `curriculum_settings` does.
        """
        settings = curriculum_settings(knobs)
        easy, normal, hard = (settings.pop(name) for name in BUCKETS)
        return Curriculum(shares=(easy, normal, hard), **settings)

    def buckets(self, rates: NDArray[np.float64]) -> NDArray[np.int64]:
        """The bucket of each solve rate: 0 easy, 1 normal, 2 hard. A problem without an estimate (NaN) is normal."""
        return np.where(rates >= self.easy_from, _EASY, np.where(rates <= self.hard_to, _HARD, _NORMAL))


class ProblemStream:
    """Draws rows of the training data, and remembers how often each was drawn and how well it was solved.

    Among the rows of a bucket, those drawn least often come first, in a new random order per pass. Without a curriculum
    there is one bucket, so this is the order of TRL's sampler. (TRL leaves out the prompts at the end of an epoch that
    do not fill a rollout batch; here none is left out.) A row occurs twice in a rollout batch only if the batch draws
    more rows than there are.

    It uses no random numbers but those of its seed, so all processes draw the same rows.

    Args:
        rows: the number of rows of the training data.
        seed: of the order.
        shuffle: whether the order is random.
        curriculum: None to draw from all rows alike.
        problems: [rows] a name per row; rows with equal names share one estimate. None if each row is its own problem.
        difficulty: [rows] solve rates to start from, NaN where they are unknown.
    """

    def __init__(
        self,
        rows: int,
        *,
        seed: int,
        shuffle: bool = True,
        curriculum: Curriculum | None = None,
        problems: Sequence[Any] | None = None,
        difficulty: Sequence[float] | None = None,
    ) -> None:
        self._rows, self._shuffle, self._curriculum = rows, shuffle, curriculum
        self._generator = torch.Generator().manual_seed(seed)
        self._places: list[NDArray[np.int64]] = []
        self._drawn = np.zeros(rows, dtype=np.int64)
        self._problem = np.arange(rows)
        if problems is not None:
            self._problem = np.unique(np.array([str(name) for name in problems]), return_inverse=True)[1]
        self._rates = np.full(int(self._problem.max(initial=-1)) + 1, np.nan)
        if difficulty is not None:
            rates = np.asarray(difficulty, dtype=np.float64)
            known = ~np.isnan(rates)
            self._rates[self._problem[known]] = rates[known]
        self._credit = [0.0, 0.0, 0.0]
        self._taken = np.zeros(rows, dtype=bool)

    def begin_batch(self) -> None:
        """Start a rollout batch: it may draw every row."""
        self._taken[:] = False

    def draw(self, count: int) -> list[int]:
        """The next `count` rows."""
        rows: list[int] = []
        while len(rows) < count:
            if self._taken.all():
                self._taken[:] = False
            rows += self._some(count - len(rows))
        return rows

    def observe(self, rows: Sequence[int], solved: Sequence[float]) -> None:
        """Move the estimates of the problems in these rows towards their groups' solve rates; NaN says nothing."""
        for row, rate in zip(rows, solved, strict=True):
            problem = self._problem[row]
            before = self._rates[problem]
            if not np.isnan(rate):
                self._rates[problem] = rate if np.isnan(before) else before + _MEMORY * (rate - before)

    def shares(self) -> dict[str, float]:
        """The share of each bucket among all rows."""
        buckets = self._buckets()
        return {name: float((buckets == i).mean()) for i, name in enumerate(BUCKETS)}

    def buckets_of(self, rows: Sequence[int]) -> list[int]:
        """The bucket that each of these rows is in now."""
        return [int(bucket) for bucket in self._buckets()[list(rows)]]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        return {
            "drawn": torch.from_numpy(self._drawn.copy()),
            "rates": torch.from_numpy(self._rates.copy()),
            "credit": list(self._credit),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            UserError: if it belongs to other training data.
        """
        sizes = len(state["drawn"]), len(state["rates"])
        if sizes != (len(self._drawn), len(self._rates)):
            raise UserError(
                f"the checkpoint belongs to training data of {sizes[0]} rows and {sizes[1]} problems, and this is "
                f"{len(self._drawn)} and {len(self._rates)}; resume with the same data"
            )
        self._drawn, self._rates = state["drawn"].numpy().copy(), state["rates"].numpy().copy()
        self._credit = list(state["credit"])

    def _some(self, count: int) -> list[int]:
        """At most `count` rows that the rollout batch has not drawn yet, at least one."""
        free = np.flatnonzero(~self._taken)
        buckets = self._buckets()[free]
        queues = [self._queue(free[buckets == i]) for i in range(len(BUCKETS))]
        rows: list[int] = []
        while len(rows) < count and any(len(queue) for queue in queues):
            rows.append(queues[self._next_bucket([len(queue) for queue in queues])].pop())
        self._taken[rows] = True
        self._drawn[rows] += 1
        return rows

    def _queue(self, rows: NDArray[np.int64]) -> list[int]:
        """These rows, the next one last."""
        drawn = self._drawn[rows]
        place = np.empty(len(rows), dtype=np.int64)
        for passes in np.unique(drawn):
            place[drawn == passes] = self._place(int(passes))[rows[drawn == passes]]
        queue: list[int] = rows[np.lexsort((place, drawn))][::-1].tolist()
        return queue

    def _place(self, passes: int) -> NDArray[np.int64]:
        """[rows] the place of each row in the order of this pass over the data."""
        while len(self._places) <= passes:
            order = torch.arange(self._rows)
            if self._shuffle:
                order = torch.randperm(self._rows, generator=self._generator)
            self._places.append(order.argsort().numpy())
        return self._places[passes]

    def _next_bucket(self, sizes: Sequence[int]) -> int:
        """The bucket whose turn it is, among those with rows left.

        Each gains its share of credit, and the richest pays one. So after any number of draws a bucket that was never
        empty has given its share of them, to within one or two. If no bucket with a share has rows left, the
        fullest gives one.
        """
        shares = (0.0, 1.0, 0.0) if self._curriculum is None else self._curriculum.shares
        held = [share if size else 0.0 for share, size in zip(shares, sizes, strict=True)]
        total = sum(held)
        if not total:
            return max(range(len(sizes)), key=lambda i: sizes[i])
        for i, share in enumerate(held):
            self._credit[i] += share / total
        richest = max((i for i, share in enumerate(held) if share), key=lambda i: self._credit[i])
        self._credit[richest] -= 1.0
        return richest

    def _buckets(self) -> NDArray[np.int64]:
        """[rows] the bucket of each row."""
        if self._curriculum is None:
            return np.full(self._rows, _NORMAL)
        return self._curriculum.buckets(self._rates)[self._problem]


def solve_rates(
    column: Sequence[Any], curriculum: Curriculum, names: Sequence[Any] | None = None
) -> list[float]:
    """The solve rates that a column `difficulty` stands for: easy, normal or hard, or a number from 0 to 1.

    A number d, which may be written as text, stands for the solve rate 1 − d. None and NaN stand for NaN, an unknown
    rate.

    Args:
        column: one value per row.
        curriculum: says which rates are normal.
        names: of the rows, for errors.

    Raises:
        ValueError: if a value is something else.
    """
    middle = (curriculum.easy_from + curriculum.hard_to) / 2
    levels = {"easy": 1.0, "normal": middle, "medium": middle, "hard": 0.0}

    def rate(value: Any) -> float:
        """NaN also for what is no difficulty."""
        if isinstance(value, str) and value.strip().lower() in levels:
            return levels[value.strip().lower()]
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            return math.nan
        return 1.0 - number if 0 <= number <= 1 else math.nan

    rates = [rate(value) for value in column]
    for i, (value, known) in enumerate(zip(column, rates, strict=True)):
        unknown = value is None or (isinstance(value, float) and math.isnan(value))
        if math.isnan(known) and not unknown:
            whose = "" if names is None else f" ({names[i]})"
            raise ValueError(
                f"difficulty={value!r:.60} in the training data{whose} is none; use easy, normal, hard, or a number "
                "from 0 to 1"
            )
    return rates
