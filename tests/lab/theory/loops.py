"""An oracle in Python loops: it goes through every trajectory, writes each formula from its definition, shares no code.

A policy is a function from a prefix (a tuple of actions) to a list of probabilities. Gradients are dictionaries from
(row, action) to a number, where `row(prefix)` says which prefixes share a row of logits.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ctpo.lab.theory import Problem

Prefix = tuple[int, ...]
Gradient = dict[tuple[int, int], float]


@dataclass
class World:
    """One problem in plain numbers."""

    vocab: int
    horizon: int
    old: Callable[[Prefix], list[float]]
    new: Callable[[Prefix], list[float]]
    row: Callable[[Prefix], int]
    reward: dict[Prefix, float]
    advantage: str
    baseline: float | None

    def trajectories(self) -> list[Prefix]:
        return list(itertools.product(range(self.vocab), repeat=self.horizon))

    def chance(self, policy: Callable[[Prefix], list[float]], o: Prefix) -> float:
        return math.prod(policy(o[:t])[o[t]] for t in range(len(o)))

    def mean_reward(self, policy: Callable[[Prefix], list[float]], prefix: Prefix = ()) -> float:
        """Return E[R | prefix], summed over all ends."""
        total = 0.0
        for end in itertools.product(range(self.vocab), repeat=self.horizon - len(prefix)):
            o = prefix + end
            p = math.prod(policy(o[:t])[o[t]] for t in range(len(prefix), self.horizon))
            total += p * self.reward[o]
        return total

    @cached_property
    def centre(self) -> float:
        return self.mean_reward(self.old) if self.baseline is None else self.baseline

    def signal(self, o: Prefix, t: int) -> float:
        """Return A of the action at position t, counted from 0."""
        if self.advantage == "terminal":
            return self.reward[o] - self.centre
        policy = self.old if self.advantage == "behaviour" else self.new
        return self.mean_reward(policy, o[: t + 1]) - self.mean_reward(policy, o[:t])

    def ratios(self, o: Prefix) -> list[float]:
        return [self.new(o[:t])[o[t]] / self.old(o[:t])[o[t]] for t in range(self.horizon)]

    def score(self, o: Prefix, t: int) -> Gradient:
        """Return ∇ log π(a_t | s_t)."""
        chances = self.new(o[:t])
        return {(self.row(o[:t]), a): (a == o[t]) - chances[a] for a in range(self.vocab)}

    def weight(self, family: str, o: Prefix, t: int) -> float:
        r = self.ratios(o)
        if family == "token":
            return r[t]
        if family == "cumulative":
            return math.prod(r[: t + 1])
        if family == "prefix-mean":
            return math.prod(r[: t + 1]) ** (1 / (t + 1))
        if family == "sequence":
            return math.prod(r)
        if family == "sequence-mean":
            return math.prod(r) ** (1 / len(r))
        if family == "min-prefix":
            return r[t] * min(r[:t]) if t else r[0]
        if family == "unit":
            return 1.0
        if family.startswith("decay="):
            decay = float(family.removeprefix("decay="))
            return math.exp(sum(decay ** (t - s) * math.log(r[s]) for s in range(t + 1)))
        raise AssertionError(family)

    def coefficient(self, family: str, o: Prefix, t: int) -> float:
        if family == "prefix-gradient":
            return sum(self.weight("cumulative", o, u) * self.signal(o, u) for u in range(t, self.horizon))
        return self.weight(family, o, t) * self.signal(o, t)

    def sample(self, family: str, o: Prefix) -> list[Gradient]:
        """Return the terms of the estimate from one trajectory."""
        return [
            {key: self.coefficient(family, o, t) * x for key, x in self.score(o, t).items()}
            for t in range(self.horizon)
        ]

    def moments(self, family: str) -> tuple[Gradient, float, list[float]]:
        """Return the mean, the total variance and the variance of every term of an estimator."""
        mean: Gradient = defaultdict(float)
        means: list[Gradient] = [defaultdict(float) for _ in range(self.horizon)]
        second, seconds = 0.0, [0.0] * self.horizon
        for o in self.trajectories():
            p, total = self.chance(self.old, o), defaultdict(float)
            for t, term in enumerate(self.sample(family, o)):
                for key, x in term.items():
                    total[key] += x
                    mean[key] += p * x
                    means[t][key] += p * x
                seconds[t] += p * square(term)
            second += p * square(total)
        terms = [seconds[t] - square(means[t]) for t in range(self.horizon)]
        return dict(mean), second - square(mean), terms


def square(gradient: Gradient) -> float:
    return math.fsum(x * x for x in gradient.values())


def row_of(sharing: str, vocab: int) -> Callable[[Prefix], int]:
    """Return the rows in the library's order: breadth first, by position, by the last action, or a single one."""

    def tabular(prefix: Prefix) -> int:
        spelled = 0
        for action in prefix:
            spelled = spelled * vocab + action
        return spelled + sum(vocab**t for t in range(len(prefix)))

    rows: dict[str, Callable[[Prefix], int]] = {
        "tabular": tabular,
        "position": len,
        "bigram": lambda prefix: prefix[-1] + 1 if prefix else 0,
        "stationary": lambda prefix: 0,
    }
    return rows[sharing]


def world_of(problem: Problem) -> World:
    """Return the same problem in plain numbers."""
    vocab, horizon = problem.tree.vocab, problem.tree.horizon
    row = row_of(problem.target.sharing.name, vocab)

    def plain(logits: list[list[float]]) -> Callable[[Prefix], list[float]]:
        table = []
        for line in logits:
            mass = [math.exp(x) for x in line]
            table.append([x / sum(mass) for x in mass])
        return lambda prefix: table[row(prefix)]

    every = itertools.product(range(vocab), repeat=horizon)
    return World(
        vocab=vocab,
        horizon=horizon,
        old=plain(problem.behaviour.logits.tolist()),
        new=plain(problem.target.logits.tolist()),
        row=row,
        reward=dict(zip(every, problem.reward.tolist(), strict=True)),
        advantage=problem.advantage,
        baseline=problem.baseline,
    )
