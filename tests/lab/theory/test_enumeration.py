"""The enumeration against loops over trajectories and against autograd of J."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from ctpo.lab.theory import ADVANTAGES, FAMILIES, SHARINGS, Problem, Setup
from ctpo.lab.theory.analysis import distances
from ctpo.lab.theory.moments import expectation, moments
from ctpo.lab.theory.policies import Policy
from ctpo.lab.theory.spread import log_ratio_spread
from ctpo.lab.theory.trees import Tree
from ctpo.lab.theory.values import expected_reward

from .loops import world_of

SMALL: dict[str, Any] = {"vocab": 3, "horizon": 3, "distance": 0.4}


def coefficients() -> dict[str, object]:
    return {name: family.coefficients for name, family in FAMILIES.items()}


def as_table(gradient: dict[tuple[int, int], float], like: torch.Tensor) -> torch.Tensor:
    table = torch.zeros_like(like)
    for (row, action), x in gradient.items():
        table[row, action] = x
    return table


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_moments_equal_loops(sharing: str, advantage: str) -> None:
    problem = Setup(**SMALL, sharing=sharing, advantage=advantage, seed=3).problem()
    world = world_of(problem)
    exact = moments(problem, coefficients())  # type: ignore[arg-type]
    for name in FAMILIES:
        mean, variance, terms = world.moments(name)
        expected = as_table(mean, problem.target.logits)
        torch.testing.assert_close(exact[name].mean, expected, rtol=0, atol=1e-12)
        assert exact[name].variance == pytest.approx(variance, rel=1e-12), name
        assert exact[name].term_variance.tolist() == pytest.approx(terms, rel=1e-12), name
        torch.testing.assert_close(
            expectation(problem, FAMILIES[name].coefficients), expected, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("sharing", ["tabular", "bigram"])
def test_chunks_do_not_change_anything(sharing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Setup(vocab=3, horizon=5, sharing=sharing).problem()
    whole = moments(problem, coefficients())  # type: ignore[arg-type]
    assert len(list(problem.tree.chunks(9))) == 27
    monkeypatch.setattr(Tree.chunks, "__defaults__", (9,))
    pieces = moments(problem, coefficients())  # type: ignore[arg-type]
    for name in FAMILIES:
        torch.testing.assert_close(pieces[name].mean, whole[name].mean, rtol=0, atol=1e-13)
        assert pieces[name].variance == pytest.approx(whole[name].variance, rel=1e-12)
        torch.testing.assert_close(
            pieces[name].term_variance, whole[name].term_variance, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("sharing", SHARINGS)
def test_gradient_is_autograd_of_the_expected_reward(sharing: str) -> None:
    """J is summed over trajectories here, from the logits and without recursion."""
    problem = Setup(**SMALL, sharing=sharing).problem()
    logits = problem.target.logits.clone().requires_grad_()
    policy = Policy(logits, problem.target.sharing)
    chunk = problem.tree.whole()
    log_chance = sum(chunk.expand(t, policy.log_probs[t]) for t in range(problem.tree.horizon))
    assert isinstance(log_chance, torch.Tensor)
    j = (log_chance.exp() * problem.reward).sum()
    (gradient,) = torch.autograd.grad(j, logits)
    torch.testing.assert_close(problem.gradient, gradient, rtol=0, atol=1e-14)
    assert expected_reward(problem.target, problem.reward).item() == pytest.approx(j.item(), rel=1e-13)
    world = world_of(problem)
    assert world.mean_reward(world.new) == pytest.approx(j.item(), rel=1e-12)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_exact_families_hit_their_own_target(sharing: str, advantage: str) -> None:
    """The expectation by enumeration equals the target by recursion; the approximate families miss theirs."""
    problem = Setup(vocab=3, horizon=4, sharing=sharing, advantage=advantage, distance=0.5).problem()
    for name, family in FAMILIES.items():
        miss = (expectation(problem, family.coefficients) - family.own_target(problem)).abs().max().item()
        if name in ("prefix-mean", "sequence-mean", "min-prefix"):
            assert miss > 1e-4, name
        else:
            assert miss < 1e-12, name


def test_distances_and_spread_equal_loops() -> None:
    problem = Setup(**SMALL, seed=5).problem()
    world = world_of(problem)
    every = world.trajectories()
    chance = {o: world.chance(world.old, o) for o in every}
    rho = {o: math.prod(world.ratios(o)) for o in every}
    figures = distances(problem)
    assert figures["kl"] == pytest.approx(-sum(chance[o] * math.log(rho[o]) for o in every), rel=1e-11)
    assert figures["chi_square"] == pytest.approx(sum(chance[o] * rho[o] ** 2 for o in every) - 1, rel=1e-11)
    prefixes = {o[:t] for o in every for t in range(3)}
    shift = max(
        sum(abs(p - q) for p, q in zip(world.old(s), world.new(s), strict=True)) / 2 for s in prefixes
    )
    assert figures["total_variation"] == pytest.approx(shift, rel=1e-12)

    spread = log_ratio_spread(problem)
    for t in range(1, 4):
        logs = {o: math.log(math.prod(world.ratios(o)[:t])) for o in every}
        mean = sum(chance[o] * logs[o] for o in every)
        variance = sum(chance[o] * (logs[o] - mean) ** 2 for o in every)
        assert spread.mean[t - 1] == pytest.approx(mean, rel=1e-11)
        assert spread.std[t - 1] == pytest.approx(math.sqrt(variance), rel=1e-11)


def test_adversary_beats_random_directions() -> None:
    """The bias at ± distance that the search finds is above that of random corners of the same box."""
    setup = Setup(horizon=6, distance=0.2, policy="adversarial")
    worst = setup.problem()

    def bias(problem: Problem) -> float:
        mean = expectation(problem, FAMILIES["cumulative"].coefficients)
        return (mean - problem.gradient).norm().item()

    step = worst.target.logits - worst.behaviour.logits
    assert step.abs().max().item() == pytest.approx(0.2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(100):
        signs = torch.randn(step.shape, generator=generator, dtype=torch.float64).sign()
        logits = worst.behaviour.logits + 0.2 * signs
        other = dataclasses.replace(worst, target=Policy(logits, worst.target.sharing))
        assert bias(other) < bias(worst)
