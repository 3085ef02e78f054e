"""A critic's error in the policy gradient: identities with the analysis without one, and a critic that converges."""

from __future__ import annotations

import pytest
import torch

from ctpo.lab.theory import FAMILIES, Problem, Setup, analyse
from ctpo.lab.theory.critic import CriticProblem, critic_rows, state_values
from ctpo.objectives.advantages import v_trace


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Setup(vocab=2, horizon=5, distance=0.7).problem()


def test_what_is_exact_and_what_is_not(problem: Problem) -> None:
    """Exact: V^π with λ = 0, and V-trace with V^π or with λ = 1. Else the bias of GAE at λ = 1 is that of R itself."""
    rows = {(row.error, row.trace, row.corrected): row for row in critic_rows(problem)}
    whole = analyse(problem, [FAMILIES["cumulative"]]).rows[0]
    perfect = analyse(
        Setup(vocab=2, horizon=5, distance=0.7, advantage="target").problem(), [FAMILIES["cumulative"]]
    ).rows[0]
    for (error, trace, corrected), row in rows.items():
        exact = (error == 0 and (trace == 0 or corrected)) or (trace == 1 and corrected)
        assert (row.bias < 1e-12) == exact
        if trace == 1 and not corrected:
            assert row.bias == pytest.approx(whole.bias, rel=1e-9)
    assert rows[0.0, 0.0, False].variance == pytest.approx(perfect.variance, rel=1e-9)
    assert rows[1.0, 0.0, False].bias > rows[0.25, 0.0, False].bias > 0.01
    assert rows[1.0, 1.0, False].variance > rows[0.0, 1.0, False].variance


def test_a_tabular_critic_converges_to_the_values_of_the_target_policy(problem: Problem) -> None:
    """Fitted to corrected returns of the behaviour policy, and then the estimate is ∇J(π)."""
    chunk, tree = problem.tree.whole(), problem.tree
    values = [torch.zeros(tree.vocab**t, dtype=torch.float64) for t in range(tree.horizon)]
    for _ in range(tree.horizon + 1):
        critic = CriticProblem(
            problem.behaviour, problem.target, problem.reward, values=tuple(values), trace=0.5, corrected=True
        )
        o, now = critic.trajectories(chunk), critic.of_chunk(chunk).T
        rewards = torch.zeros_like(now)
        rewards[:, -1] = problem.reward
        bars = {"rho_bar": torch.inf, "c_bar": torch.inf}
        whole = torch.ones_like(now, dtype=torch.bool)
        targets = v_trace(rewards, now, whole, o.log_ratios.T, trace=0.5, **bars)[1].T
        for t in range(tree.horizon):  # least squares under b: the mean of the targets at each prefix
            mass, total = (
                chunk.sum_by_edge(t, each).reshape(-1, tree.vocab).sum(-1)
                for each in (o.probability, o.probability * targets[t])
            )
            values[t] = total / mass
    for got, expected in zip(values, state_values(problem.target, problem.reward), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
