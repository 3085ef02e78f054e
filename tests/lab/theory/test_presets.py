"""The enumeration's estimators are what the library's objectives compute.

All V^T trajectories are one batch, weighted by their probability under b; the real objective's loss is differentiated
down to the logits of a table policy by autograd, with no part of `ctpo.lab.theory` on the way.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from ctpo.errors import UserError
from ctpo.lab.theory import FAMILIES, Problem, Setup, objective_estimator
from ctpo.lab.theory.moments import expectation, moments
from ctpo.lab.theory.presets import family_of
from ctpo.objectives import Objective, preset, preset_names
from ctpo.objectives import ratios as r
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import Linear, StopGradientWeight
from ctpo.objectives.trust_regions import Unbounded

from .loops import row_of, world_of

RATIOS: dict[str, r.Ratio] = {
    "token": r.TokenRatio(),
    "cumulative": r.CumulativeRatio(),
    "prefix-mean": r.PrefixMeanRatio(),
    "sequence": r.SequenceRatio(),
    "sequence-mean": r.SequenceMeanRatio(),
    "min-prefix": r.MinPrefixRatio(),
    "unit": r.UnitRatio(),
    "prefix-gradient": r.CumulativeRatio(gradient="through"),
}


def unclipped(family: str) -> Objective:
    surrogate = StopGradientWeight() if family == "unit" else Linear()
    return Objective(
        ratio=RATIOS[family], trust_region=Unbounded(), surrogate=surrogate, reduction=Reduction("sum")
    )


def library_gradient(objective: Objective, problem: Problem) -> torch.Tensor:
    """Return −∂/∂θ Σ_o b(o) loss(o), with every number from loops and autograd."""
    world = world_of(problem)
    every = world.trajectories()
    row = row_of(problem.target.sharing.name, world.vocab)
    logits = problem.target.logits.clone().requires_grad_()
    table = logits.log_softmax(-1)
    steps = range(world.horizon)
    logps = torch.stack([torch.stack([table[row(o[:t]), o[t]] for t in steps]) for o in every])
    old = torch.tensor(
        [[math.log(world.old(o[:t])[o[t]]) for t in steps] for o in every], dtype=torch.float64
    )
    signal = torch.tensor([[world.signal(o, t) for t in steps] for o in every], dtype=torch.float64)
    chances = torch.tensor([world.chance(world.old, o) for o in every], dtype=torch.float64)
    out = objective(logps, old, signal, torch.ones_like(old).bool(), weights=chances)
    (gradient,) = torch.autograd.grad(out.loss, logits)
    return -gradient


@pytest.mark.parametrize("sharing", ["tabular", "bigram"])
@pytest.mark.parametrize("advantage", ["terminal", "behaviour"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_the_unclipped_compositions(family: str, advantage: str, sharing: str) -> None:
    problem = Setup(vocab=2, horizon=4, sharing=sharing, advantage=advantage, seed=4).problem()
    mean = expectation(problem, FAMILIES[family].coefficients)
    torch.testing.assert_close(mean, library_gradient(unclipped(family), problem), rtol=0, atol=1e-10)


CAPPED = {
    "cispo": "ratio_high=0.2",
    "minpro": "ratio_high=0.2",
    "dispo": "ratio_high_pos=0.2",
    "dppo-tv": "delta_high=0.02",
}
"""Knobs that make a region have an effect here: weights of 5, for example, do not occur."""
PER_TRAJECTORY = [name for name in preset_names() if preset(name).row_wise and not preset(name).needs_turns]


@pytest.mark.parametrize("name", PER_TRAJECTORY)
def test_presets_keep_their_trust_region(name: str) -> None:
    """The expected gradient of every preset is the objective's own, and its trust region has an effect here."""
    problem = Setup(vocab=2, horizon=5, distance=0.8).problem()
    objective = dataclasses.replace(preset(name), reduction=Reduction("sum"))
    estimator = objective_estimator(name, problem)
    mean = expectation(problem, estimator.coefficients)
    torch.testing.assert_close(mean, library_gradient(objective, problem), rtol=0, atol=1e-10)
    family = FAMILIES[family_of(preset(name).ratio)]
    assert estimator.own_target is family.own_target
    if name != "reinforce":  # it has no trust region
        reached = f"{name}?{CAPPED[name]}" if name in CAPPED else name
        bounded = expectation(problem, objective_estimator(reached, problem).coefficients)
        assert (bounded - expectation(problem, family.coefficients)).norm().item() > 1e-3


def test_knobs_reach_the_preset() -> None:
    problem = Setup(vocab=2, horizon=4, distance=0.8).problem()
    wide = objective_estimator("ctpo?log_low=9&log_high=9&log_dual=none&power=0.5", problem)
    torch.testing.assert_close(
        expectation(problem, wide.coefficients),
        expectation(problem, FAMILIES["cumulative"].coefficients),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("spec", ["m2po", "m2po?moment=0.02&ratio_low=0&ratio_high=0"])
def test_a_second_moment_is_the_limit_of_large_batches(spec: str) -> None:
    """b is uniform, so a batch with every trajectory once is such a batch."""
    problem = Setup(vocab=3, horizon=4, spread=0.0, distance=0.6).problem()
    knobs = {"moment": 0.02, "ratio_low": 0.0, "ratio_high": 0.0} if "?" in spec else {}
    o = problem.trajectories(problem.tree.whole())
    logps = o.logps.T.clone().requires_grad_()
    ones = torch.ones_like(logps).bool()
    out = preset("m2po", reduction="sum", **knobs)(logps, o.old_logps.T, o.advantages.T, ones)
    (gradient,) = torch.autograd.grad(out.loss, logps)
    got = objective_estimator(spec, problem).coefficients(o)
    torch.testing.assert_close(got, -gradient.T, rtol=0, atol=1e-12)
    assert out.stats["clip_fraction"].item() > 0


@pytest.mark.parametrize("name", ["sequence-quantile", "prefix-quantile"])
def test_quantile_gates_are_the_limit_of_large_batches(name: str) -> None:
    """The estimator equals the real gate on a batch in which every trajectory occurs as often as b draws it.

    b is uniform, so a batch with every trajectory once is such a batch.
    """
    problem = Setup(vocab=3, horizon=4, spread=0.0, distance=0.6).problem()
    real = dataclasses.replace(preset(name), reduction=Reduction("sum"))
    estimator = objective_estimator(name, problem)
    o = problem.trajectories(problem.tree.whole())
    logps = o.logps.T.clone().requires_grad_()
    out = real(logps, o.old_logps.T, o.advantages.T, torch.ones_like(logps).bool())
    (gradient,) = torch.autograd.grad(out.loss, logps)
    torch.testing.assert_close(estimator.coefficients(o), -gradient.T, rtol=0, atol=1e-12)
    dropped = (estimator.coefficients(o)[-1] == 0).double().mean().item()
    assert 0.1 < dropped < 0.3


def test_quantile_gate_weights_trajectories_by_their_probability() -> None:
    """If b is not uniform, the gate drops a share q of b's mass, up to one trajectory; a loop counts it."""
    problem = Setup(vocab=2, horizon=8, distance=0.6).problem()
    world = world_of(problem)
    o = problem.trajectories(problem.tree.whole())
    kept = objective_estimator("sequence-quantile?q=0.3", problem).coefficients(o)[0] != 0
    every = list(itertools.product(range(2), repeat=8))
    drift = {e: abs(math.log(math.prod(world.ratios(e)))) for e in every}
    threshold = max(drift[e] for e, k in zip(every, kept.tolist(), strict=True) if k)
    inside = sum(world.chance(world.old, e) for e in every if drift[e] <= threshold + 1e-9)
    without_last = sum(world.chance(world.old, e) for e in every if drift[e] < threshold - 1e-9)
    assert without_last < 0.7 <= inside + 1e-9


def test_clipping_changes_bias_and_variance_as_loops_say() -> None:
    """The variance of a clipped objective equals that of its gradients per trajectory, from a loop."""
    problem = Setup(vocab=2, horizon=4, distance=0.6, sharing="stationary").problem()
    estimator = objective_estimator("ctpo?log_low=0.2&log_high=0.2&log_dual=0.3", problem)
    exact = moments(problem, {"x": estimator.coefficients})["x"]
    world = world_of(problem)
    objective = preset("ctpo", log_low=0.2, log_high=0.2, log_dual=0.3, reduction="sum")
    mean, second = torch.zeros(2, dtype=torch.float64), 0.0
    for o in world.trajectories():
        logits = problem.target.logits.clone().requires_grad_()
        logps = torch.stack([logits.log_softmax(-1)[0, a] for a in o]).unsqueeze(0)
        old = torch.tensor([[math.log(world.old(o[:t])[o[t]]) for t in range(4)]], dtype=torch.float64)
        signal = torch.tensor([world.signal(o, 0)], dtype=torch.float64)
        out = objective(logps, old, signal, torch.ones_like(old).bool())
        (gradient,) = torch.autograd.grad(out.loss, logits)
        chance = world.chance(world.old, o)
        mean -= chance * gradient[0]
        second += chance * gradient.square().sum().item()
    torch.testing.assert_close(exact.mean[0], mean, rtol=0, atol=1e-12)
    assert exact.variance == pytest.approx(second - mean.square().sum().item(), rel=1e-11)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("ctpoo", ["'ctpoo' is not known", "'ctpo'"]),
        ("ctpo?hihg=1", ["hihg", "'log_high'"]),
        ("ctpo?log_low=-1", ["log_low: -1"]),
        ("ctpo?log_low", ["'log_low' is no knob"]),
        ("ctpo?log_low=wide", ["'wide' is not a number"]),
        ("ctpo?kl_coef=0.1", ["kl_coef"]),
        ("ctpo-turn", ["one turn each", "'ctpo'"]),
    ],
)
def test_bad_specs(spec: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        objective_estimator(spec, Setup(vocab=2, horizon=2).problem())
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)
