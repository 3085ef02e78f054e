"""Errors, crossings and averages against their definitions."""

from __future__ import annotations

import math

import pytest

from ctpo.lab.theory import FAMILIES, Analysis, Setup, analyse, objective_estimator
from ctpo.lab.theory.averages import average


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    problem = Setup().problem()
    presets = [objective_estimator(name, problem) for name in ("ctpo", "grpo", "sequence-quantile")]
    return analyse(problem, [*FAMILIES.values(), *presets])


def test_error_of_a_mean_of_samples() -> None:
    """E‖mean of N ĝ − ∇J‖² for N = 2, by enumerating all pairs of trajectories."""
    problem = Setup(vocab=2, horizon=2).problem()
    exact = analyse(problem, [FAMILIES["token"]])
    o = problem.trajectories(problem.tree.whole())
    k = FAMILIES["token"].coefficients(o)
    gradients = [problem.target.gradient([_one(4, i, k[0, i], 0), _one(4, i, k[1, i], 1)]) for i in range(4)]
    error = sum(
        (o.probability[i] * o.probability[j]).item()
        * ((gradients[i] + gradients[j]) / 2 - problem.gradient).square().sum().item()
        for i in range(4)
        for j in range(4)
    )
    assert exact.rows[0].error(2) * exact.unit**2 == pytest.approx(error, rel=1e-12)


def _one(count: int, trajectory: int, value: object, level: int) -> object:
    """Return the edge weights of a level with the coefficient of a single trajectory, for V = 2, T = 2."""
    import torch

    edges = torch.zeros(2 ** (level + 1), dtype=torch.float64)
    edges[trajectory // 2 ** (1 - level)] = value  # type: ignore[call-overload]
    return edges


def test_best_is_the_lower_envelope(analysis: Analysis) -> None:
    """Between the changes, just before them and just after them, the named estimator has the least error."""
    best = analysis.best()
    assert len(best) >= 3
    for index, (start, name) in enumerate(best):
        end = best[index + 1][0] if index + 1 < len(best) else 1e9
        for size in (start * 1.001, math.sqrt(start * end), end * 0.999):
            errors = {row.name: row.error(size) for row in analysis.rows}
            assert errors[name] == pytest.approx(min(errors.values()), rel=1e-12)


def test_crossings_are_equal_errors(analysis: Analysis) -> None:
    rows = {row.name: row for row in analysis.rows}
    crossings = analysis.crossings()
    for crossing in crossings:
        n, earlier, later = crossing.trajectories, rows[crossing.earlier], rows[crossing.later]
        assert earlier.error(n) == pytest.approx(later.error(n), rel=1e-9)
        assert earlier.error(2 * n) > later.error(2 * n)
    # Of every pair, either one is always better, or they cross once.
    pairs = {frozenset((c.earlier, c.later)) for c in crossings}
    assert len(pairs) == len(crossings)
    for first in analysis.rows:
        for second in analysis.rows:
            if first is not second and frozenset((first.name, second.name)) not in pairs:
                ranks = {first.error(n) <= second.error(n) for n in (1e-9, 1.0, 1e9)}
                assert len(ranks) == 1, (first.name, second.name)


def test_equal_policies_and_no_gradient() -> None:
    """If π = b, every corrected family is exact. With a constant reward there is no gradient to divide by."""
    same = analyse(Setup(distance=0.0).problem(), list(FAMILIES.values()))
    for row in same.rows:
        assert (row.bias < 1e-12) == (row.name != "prefix-gradient"), row.name
    assert same.distance["kl"] == pytest.approx(0, abs=1e-15)
    assert math.isnan(same.spread.exponent)
    problem = Setup(vocab=2, horizon=3).problem()
    constant = type(problem)(problem.behaviour, problem.target, problem.reward * 0 + 2)
    none = analyse(constant, list(FAMILIES.values()))
    assert none.unit == 1.0
    assert all(row.bias < 1e-12 and row.variance < 1e-20 for row in none.rows)


def test_averages() -> None:
    analyses = [analyse(Setup(horizon=4, seed=seed).problem(), list(FAMILIES.values())) for seed in range(4)]
    rows = average(analyses, [1, 10**9])
    for index, row in enumerate(rows):
        biases = [analysis.rows[index].bias for analysis in analyses]
        mean = sum(biases) / 4
        assert row.bias == pytest.approx(mean)
        assert row.bias_stderr == pytest.approx(math.sqrt(sum((b - mean) ** 2 for b in biases) / 3 / 4))
        assert row.wins[1] == (row.name == "sequence")
    assert sum(row.wins[0] for row in rows) == pytest.approx(1)
