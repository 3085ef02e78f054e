"""The exact expectation and variance of estimators, by enumerating every trajectory once.

An estimator is ĝ(o) = Σ_t k_t(o) ∇_θ log π(a_t|s_t). Its expectation needs only the sum of the coefficients over the
trajectories of each edge. Its second moment needs ‖ĝ(o)‖², whose cross terms are 0 unless two positions share
parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.lab.theory.families import Coefficients
from ctpo.lab.theory.policies import Policy
from ctpo.lab.theory.problems import Problem, Trajectories
from ctpo.lab.theory.trees import Chunk


@dataclass(frozen=True)
class Moments:
    """The exact moments of an estimate from one trajectory.

    Attributes:
        mean: E_b[ĝ], [G, V].
        variance: tr Cov_b(ĝ).
        term_variance: tr Cov_b(k_t ∇log π_t) of the term at every position t, [T].
    """

    mean: Tensor
    variance: float
    term_variance: Tensor


def moments(problem: Problem, estimators: dict[str, Coefficients]) -> dict[str, Moments]:
    """Return the moments of several estimators by name, in one pass over the trajectories."""
    sums = {name: _RunningSums(problem) for name in estimators}
    with torch.no_grad():
        for chunk in problem.tree.chunks():
            trajectories = problem.trajectories(chunk)
            squares = [chunk.expand(t, table) for t, table in enumerate(problem.target.score_squares)]
            coefficients = {name: estimate(trajectories) for name, estimate in estimators.items()}
            for name, k in coefficients.items():
                sums[name].add(chunk, trajectories, k, squares)
            for t, u, kernel in _overlaps(problem.target, chunk):
                weighted = trajectories.probability * kernel
                for name, k in coefficients.items():
                    sums[name].cross += 2 * torch.dot(k[t] * k[u], weighted).item()
    return {name: total.finish() for name, total in sums.items()}


def expectation(problem: Problem, estimate: Coefficients) -> Tensor:
    """Return E_b[ĝ], [G, V], which can be differentiated with respect to the logits of both policies."""
    chunk = problem.tree.whole()
    trajectories = problem.trajectories(chunk)
    weighted = trajectories.probability * estimate(trajectories)
    edges = [chunk.sum_by_edge(t, weighted[t]) for t in range(problem.tree.horizon)]
    return problem.target.gradient(edges)


def _overlaps(policy: Policy, chunk: Chunk) -> Iterator[tuple[int, int, Tensor]]:
    """Yield t, u and ⟨∇log π_t, ∇log π_u⟩ of every trajectory, [n], for the pairs t < u that can share parameters.

    If both positions use the same row π, the product of onehot(a_t) − π and onehot(a_u) − π is
    1[a_t = a_u] − π(a_t) − π(a_u) + Σ π². The part that belongs to position t is ½ Σ π² − π(a_t), which is
    ½‖∇log π_t‖² − ½.
    """
    if not policy.sharing.crosses_positions:
        return
    vocab = policy.sharing.tree.vocab
    horizon = policy.sharing.tree.horizon
    index = torch.arange(chunk.start, chunk.start + chunk.length)
    # The number of a prefix, which decides its row, is the trajectory's number divided by a power of V.
    prefixes = [index.div(vocab ** (horizon - t), rounding_mode="floor") for t in range(horizon)]
    rows = [policy.sharing.row_of(t, prefixes[t]) for t in range(horizon)]
    actions = [index.div(vocab ** (horizon - 1 - t), rounding_mode="floor") % vocab for t in range(horizon)]
    halves = [(chunk.expand(t, table) - 1) / 2 for t, table in enumerate(policy.score_squares)]
    for t in range(horizon):
        for u in range(t + 1, horizon):
            product = (actions[t] == actions[u]) + halves[t] + halves[u]
            yield t, u, torch.where(rows[t] == rows[u], product, 0.0)


class _RunningSums:
    """Sums over the chunks so far, for one estimator."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.edges = [torch.zeros(p.numel(), dtype=torch.float64) for p in problem.target.probs]
        self.diagonal = torch.zeros(problem.tree.horizon, dtype=torch.float64)
        self.cross = 0.0

    def add(self, chunk: Chunk, o: Trajectories, k: Tensor, squares: list[Tensor]) -> None:
        """Add the trajectories of a chunk, with their coefficients k, [T, n]."""
        for t, square in enumerate(squares):
            weighted = o.probability * k[t]
            self.edges[t][chunk.edges(t)] += chunk.sum_by_edge(t, weighted)
            self.diagonal[t] += torch.dot(weighted * k[t], square)

    def finish(self) -> Moments:
        """Return the moments, once every trajectory is added."""
        target = self.problem.target
        mean, term = torch.zeros_like(target.logits), []
        for t, weights in enumerate(self.edges):
            own = target.level_gradient(t, weights)
            mean += own
            term.append(self.diagonal[t] - own.square().sum())
        second = self.diagonal.sum().item() + self.cross
        return Moments(mean, second - mean.square().sum().item(), torch.stack(term))
