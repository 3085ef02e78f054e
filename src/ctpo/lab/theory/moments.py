"""Exact expectation and variance of estimators, by enumerating every trajectory once.

ĝ(o) = Σ_t k_t(o) ∇_θ log π(a_t|s_t). The expectation needs only the coefficients summed over the trajectories of each
edge. The second moment needs ‖ĝ(o)‖², whose cross terms vanish unless two positions share parameters.
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
    """Exact moments of one estimator from one trajectory.

    Attributes:
        mean: E_b[ĝ], [G, V].
        variance: tr Cov_b(ĝ).
        term_variance: tr Cov_b(k_t ∇log π_t) of every t, [T].
    """

    mean: Tensor
    variance: float
    term_variance: Tensor


def moments(problem: Problem, estimators: dict[str, Coefficients]) -> dict[str, Moments]:
    """Moments of several estimators, in one pass over the trajectories."""
    sums = {name: _Sums(problem) for name in estimators}
    with torch.no_grad():
        for chunk in problem.tree.chunks():
            trajectories = problem.trajectories(chunk)
            squares = [chunk.spread(t, table) for t, table in enumerate(problem.target.score_squares)]
            coefficients = {name: estimate(trajectories) for name, estimate in estimators.items()}
            for name, k in coefficients.items():
                sums[name].add(chunk, trajectories, k, squares)
            for t, u, kernel in _overlaps(problem.target, chunk):
                weighted = trajectories.probability * kernel
                for name, k in coefficients.items():
                    sums[name].cross += 2 * torch.dot(k[t] * k[u], weighted).item()
    return {name: total.finish() for name, total in sums.items()}


def expectation(problem: Problem, estimate: Coefficients) -> Tensor:
    """E_b[ĝ], [G, V], differentiable in the policies' logits."""
    chunk = problem.tree.whole()
    trajectories = problem.trajectories(chunk)
    weighted = trajectories.probability * estimate(trajectories)
    edges = [chunk.gather(t, weighted[t]) for t in range(problem.tree.horizon)]
    return problem.target.gradient(edges)


def _overlaps(policy: Policy, chunk: Chunk) -> Iterator[tuple[int, int, Tensor]]:
    """⟨∇log π_t, ∇log π_u⟩ at every trajectory, [n], for the pairs t < u that can share parameters.

    Both rows are the same π where they meet, so the product of onehot(a_t) − π and onehot(a_u) − π is
    1[a_t = a_u] − π(a_t) − π(a_u) + Σ π²; and ½‖∇log π_t‖² − ½ = ½ Σ π² − π(a_t) holds what belongs to each.
    """
    if not policy.sharing.crosses_positions:
        return
    vocab = policy.sharing.tree.vocab
    horizon = policy.sharing.tree.horizon
    index = torch.arange(chunk.start, chunk.start + chunk.length)
    # The row of a prefix depends on its number alone, and so on the trajectory's by a division.
    prefixes = [index.div(vocab ** (horizon - t), rounding_mode="floor") for t in range(horizon)]
    rows = [policy.sharing.row_of(t, prefixes[t]) for t in range(horizon)]
    actions = [index.div(vocab ** (horizon - 1 - t), rounding_mode="floor") % vocab for t in range(horizon)]
    halves = [(chunk.spread(t, table) - 1) / 2 for t, table in enumerate(policy.score_squares)]
    for t in range(horizon):
        for u in range(t + 1, horizon):
            product = (actions[t] == actions[u]) + halves[t] + halves[u]
            yield t, u, torch.where(rows[t] == rows[u], product, 0.0)


class _Sums:
    """Running sums of one estimator over the chunks."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.edges = [torch.zeros(p.numel(), dtype=torch.float64) for p in problem.target.probs]
        self.diagonal = torch.zeros(problem.tree.horizon, dtype=torch.float64)
        self.cross = 0.0

    def add(self, chunk: Chunk, o: Trajectories, k: Tensor, squares: list[Tensor]) -> None:
        """Add the trajectories of a chunk; k [T, n]."""
        for t, square in enumerate(squares):
            weighted = o.probability * k[t]
            self.edges[t][chunk.edges(t)] += chunk.gather(t, weighted)
            self.diagonal[t] += torch.dot(weighted * k[t], square)

    def finish(self) -> Moments:
        """The moments, once every trajectory was added."""
        target = self.problem.target
        mean, term = torch.zeros_like(target.logits), []
        for t, weights in enumerate(self.edges):
            own = target.level_gradient(t, weights)
            mean += own
            term.append(self.diagonal[t] - own.square().sum())
        second = self.diagonal.sum().item() + self.cross
        return Moments(mean, second - mean.square().sum().item(), torch.stack(term))
