"""Facts about the ratio families, each derived in a second way.

The left side of each equation is the library's enumeration or recursion; the right side comes from loops over
trajectories (`loops.py`) or from autograd. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from ctpo.lab.theory import FAMILIES, Policy, Problem, Setup, Sharing, Tree, analyse, objective_estimator
from ctpo.lab.theory.moments import expectation, moments

from .loops import World, world_of
from .test_enumeration import as_table

EXACT = 1e-12


def mean_of(problem: Problem, family: str) -> torch.Tensor:
    return expectation(problem, FAMILIES[family].coefficients)


def bias_of(problem: Problem, family: str) -> float:
    return (mean_of(problem, family) - problem.gradient).abs().max().item()


def problem_of(advantage: str, **settings: object) -> Problem:
    return Setup(**{"vocab": 2, "horizon": 4, "distance": 0.7, **settings}, advantage=advantage).problem()  # type: ignore[arg-type]


def stationary(horizon: int, old: float, new: float, reward: torch.Tensor, **rest: object) -> Problem:
    """Return a problem whose policies choose action 0 with one probability each, at every position and prefix."""
    sharing = Sharing("stationary", Tree(2, horizon))

    def policy(chance: float) -> Policy:
        return Policy(torch.tensor([[chance, 1 - chance]], dtype=torch.float64).log(), sharing)

    return Problem(policy(old), policy(new), reward, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_1_prefix_ratio_corrects_any_function_of_the_prefix(t: int) -> None:
    """E_b[ρ_{1:t} f] = E_π[f] for an arbitrary table f of the prefix through t."""
    world = world_of(problem_of("terminal", seed=t))
    generator = torch.Generator().manual_seed(t)
    f: dict[tuple[int, ...], float] = {}
    left = right = shorter = 0.0
    for o in world.trajectories():
        value = f.setdefault(o[:t], torch.randn((), generator=generator, dtype=torch.float64).item())
        ratios = world.ratios(o)
        left += world.chance(world.old, o) * math.prod(ratios[:t]) * value
        shorter += world.chance(world.old, o) * math.prod(ratios[: t - 1]) * value
        right += world.chance(world.new, o) * value
    assert abs(left - right) <= EXACT
    assert abs(shorter - right) > 1e-4  # with one factor fewer it does not hold


def test_1_estimator_form() -> None:
    """With a prefix-measurable advantage, the cumulative estimator is E_π of its own terms; loops compute those."""
    problem = problem_of("behaviour")
    world = world_of(problem)
    expected: dict[tuple[int, int], float] = {}
    for o in world.trajectories():
        for t in range(world.horizon):
            for key, x in world.score(o, t).items():
                expected[key] = expected.get(key, 0.0) + world.chance(world.new, o) * x * world.signal(o, t)
    difference = mean_of(problem, "cumulative") - as_table(expected, problem.target.logits)
    assert difference.abs().max().item() <= EXACT


def loops_gradient(world: World, value: Callable[[tuple[int, ...]], float]) -> dict[tuple[int, int], float]:
    """Return Σ_t E_{prefix ∼ π}[∇log π_t · value(prefix through t)]."""
    total: dict[tuple[int, int], float] = {}
    for o in world.trajectories():
        for t in range(world.horizon):
            for key, x in world.score(o, t).items():
                total[key] = total.get(key, 0.0) + world.chance(world.new, o) * x * value(o[: t + 1])
    return total


@pytest.mark.parametrize("sharing", ["tabular", "stationary"])
@pytest.mark.parametrize("baseline", [None, 0.0, 2.5])
def test_2_terminal_advantage_leaves_the_continuation_to_b(sharing: str, baseline: float | None) -> None:
    """The cumulative estimator is g^b, whatever the baseline; its bias is Σ_t E_π[∇log π_t (Q^b − Q^π)]."""
    problem = problem_of("terminal", sharing=sharing, baseline=baseline)
    world = world_of(problem)

    def q_b(prefix: tuple[int, ...]) -> float:
        return world.mean_reward(world.old, prefix)

    g_b = as_table(loops_gradient(world, q_b), problem.target.logits)
    assert (mean_of(problem, "cumulative") - g_b).abs().max().item() <= EXACT
    gap = loops_gradient(world, lambda prefix: q_b(prefix) - world.mean_reward(world.new, prefix))
    bias = mean_of(problem, "cumulative") - problem.gradient
    assert (bias - as_table(gap, problem.target.logits)).abs().max().item() <= EXACT
    assert bias.norm() > 0.05 * problem.gradient.norm()


@pytest.mark.parametrize("sharing", ["tabular", "bigram"])
def test_3_which_estimators_are_the_policy_gradient(sharing: str) -> None:
    """With A^π the prefix and the full sequence are exact; with A(o) only the full sequence is.

    With A^π the gradient through the whole prefix is exact too: the advantages after s have mean 0 under π.
    """
    exact = {"cumulative", "sequence", "prefix-gradient"}
    for advantage, unbiased in (("target", exact), ("terminal", {"sequence"})):
        problem = problem_of(advantage, sharing=sharing)
        (gradient,) = torch.autograd.grad(*_expected_reward(problem))
        assert (problem.gradient - gradient).abs().max().item() <= EXACT
        for family in FAMILIES:
            bias = (mean_of(problem, family) - gradient).abs().max().item()
            assert (bias <= EXACT) == (family in unbiased), (advantage, family, bias)


def _expected_reward(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Return J, summed over trajectories, and the logits of π that it can be differentiated by."""
    logits = problem.target.logits.clone().requires_grad_()
    policy, chunk = Policy(logits, problem.target.sharing), problem.tree.whole()
    logs = torch.stack([chunk.expand(t, policy.log_probs[t]) for t in range(problem.tree.horizon)])
    return (logs.sum(0).exp() * problem.reward).sum(), logits


@pytest.mark.parametrize("sharing", ["tabular", "bigram"])
def test_4_performance_difference(sharing: str) -> None:
    """J(π) − J(b) = Σ_t E_b[ρ_{1:t} A^b_t], and its derivative through the whole of ρ is ∇J."""
    problem = problem_of("behaviour", sharing=sharing)
    world = world_of(problem)
    total = math.fsum(
        world.chance(world.old, o) * math.prod(world.ratios(o)[: t + 1]) * world.signal(o, t)
        for o in world.trajectories()
        for t in range(world.horizon)
    )
    assert abs(world.mean_reward(world.new) - world.mean_reward(world.old) - total) <= EXACT
    (gradient,) = torch.autograd.grad(*_expected_reward(problem))
    assert (mean_of(problem, "prefix-gradient") - gradient).abs().max().item() <= EXACT
    # The estimator that differentiates only the current token is not.
    assert bias_of(problem, "cumulative") > 1e-3


@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_5_variance_gap_of_a_prefix_function(t: int) -> None:
    """Var(ρ_{1:T} f) − Var(ρ_{1:t} f) = E_b[ρ_{1:t}² f² χ²(suffix | prefix)] ≥ 0."""
    world = world_of(problem_of("terminal", seed=10 + t))
    generator = torch.Generator().manual_seed(t)
    f: dict[tuple[int, ...], float] = {}
    first = [0.0, 0.0]
    second = [0.0, 0.0]
    for o in world.trajectories():
        value = f.setdefault(o[:t], torch.randn((), generator=generator, dtype=torch.float64).item())
        for which, end in enumerate((t, world.horizon)):
            x = math.prod(world.ratios(o)[:end]) * value
            first[which] += world.chance(world.old, o) * x
            second[which] += world.chance(world.old, o) * x * x
    gap = (second[1] - first[1] ** 2) - (second[0] - first[0] ** 2)

    expected = 0.0
    for prefix, value in f.items():
        ends = [o for o in world.trajectories() if o[:t] == prefix]
        reached = sum(world.chance(world.old, o) for o in ends)
        reached_new = sum(world.chance(world.new, o) for o in ends)
        # χ² of the conditional distributions of the suffix, from their definition Σ (π − b)²/b.
        chi_square = 0.0
        for o in ends:
            old, new = world.chance(world.old, o) / reached, world.chance(world.new, o) / reached_new
            chi_square += (new - old) ** 2 / old
        expected += reached * (reached_new / reached) ** 2 * value**2 * chi_square
    assert abs(gap - expected) <= EXACT
    assert gap >= -EXACT
    assert (gap > 1e-3) == (t < world.horizon)


@pytest.mark.parametrize("seed", range(5))
def test_5_terms_of_a_prefix_measurable_advantage_are_ordered(seed: int) -> None:
    """So with A^b every term has less variance, and so has the sum if terms share no parameters."""
    problem = problem_of("behaviour", seed=seed)
    exact = moments(problem, {name: FAMILIES[name].coefficients for name in ("cumulative", "sequence")})
    gap = exact["sequence"].term_variance - exact["cumulative"].term_variance
    assert bool((gap[:-1] > 0).all())
    assert abs(gap[-1].item()) <= EXACT
    assert exact["sequence"].variance > exact["cumulative"].variance


def test_5_terminal_advantage_can_reverse_a_term() -> None:
    """b = (.5, .5), π = (.2, .8), R = 1 if the second action is 0, no baseline: π avoids the rewarded action.

    By hand, with ‖∇log π‖² = 2·.8² on action 0 and 2·.2² on action 1: E_b[r²‖·‖²] = .2048 at t = 1. The full sequence
    multiplies by E_b[r² R] = .08, the prefix by E_b[R] = .5. Means: E_b[r ∇log π] = 0.
    """
    problem = stationary(2, 0.5, 0.2, torch.tensor([1.0, 0.0, 1.0, 0.0]).double(), baseline=0.0)
    exact = moments(problem, {name: FAMILIES[name].coefficients for name in ("cumulative", "sequence")})
    assert exact["cumulative"].term_variance[0].item() == pytest.approx(0.2048 * 0.5, rel=1e-12)
    assert exact["sequence"].term_variance[0].item() == pytest.approx(0.2048 * 0.08, rel=1e-12)


def test_5_shared_parameters_can_reverse_the_sum() -> None:
    """b = (.2, .8), π = (.8, .2), R = 1 only for the response 01, A^b, one row of parameters.

    Each term is in order. But the terms of the full sequence cancel, and those of the prefix do not.
    """
    problem = stationary(2, 0.2, 0.8, torch.tensor([0.0, 1.0, 0.0, 0.0]).double(), advantage="behaviour")
    exact = moments(problem, {name: FAMILIES[name].coefficients for name in ("cumulative", "sequence")})
    cumulative, sequence = exact["cumulative"], exact["sequence"]
    assert cumulative.term_variance[0] < sequence.term_variance[0]
    assert cumulative.variance == pytest.approx(0.376832, rel=1e-12)
    assert sequence.variance == pytest.approx(0.026624, rel=1e-11)
    world = world_of(problem)
    assert cumulative.variance == pytest.approx(world.moments("cumulative")[1], rel=1e-12)
    assert sequence.variance == pytest.approx(world.moments("sequence")[1], rel=1e-11)


def relative_bias(distance: float, seed: int, family: str, sharing: str = "tabular") -> float:
    problem = Setup(distance=distance, seed=seed, sharing=sharing).problem()
    return ((mean_of(problem, family) - problem.gradient).norm() / problem.gradient.norm()).item()


@pytest.mark.parametrize("family", ["token", "cumulative"])
@pytest.mark.parametrize("seed", [0, 1])
def test_6_bias_is_first_order_in_the_distance(family: str, seed: int) -> None:
    """bias(δ) = cδ + O(δ²) with c > 0: halving δ halves it, and the slope converges at first order."""
    slopes = [relative_bias(distance, seed, family) / distance for distance in (4e-4, 2e-4, 1e-4)]
    assert slopes[-1] > 0.3
    assert slopes[1] - slopes[2] == pytest.approx((slopes[0] - slopes[1]) / 2, rel=0.02)


def test_6_size_of_the_biases() -> None:
    """V = 2, T = 8, tabular, b's logits N(0, 1), π's = b's + δ N(0, 1), normal rewards: about 1.3 δ and 0.9 δ.

    These are means over 100 problems as δ → 0. The figures of single problems scatter by 0.37 and 0.31.
    """
    delta, draws = 1e-4, range(100)
    token = [relative_bias(delta, seed, "token") / delta for seed in draws]
    cumulative = [relative_bias(delta, seed, "cumulative") / delta for seed in draws]
    token_mean, cumulative_mean = sum(token) / len(draws), sum(cumulative) / len(draws)
    assert token_mean == pytest.approx(1.28, abs=0.1)
    assert cumulative_mean == pytest.approx(0.89, abs=0.1)
    assert cumulative_mean / token_mean == pytest.approx(0.69, abs=0.04)


def test_6_first_order_slope_from_its_derivative() -> None:
    """The derivative of the bias at δ = 0 agrees with the bias at a finite distance."""
    problem = Setup(distance=1.0, seed=2).problem()
    old, direction = problem.behaviour.logits, problem.target.logits - problem.behaviour.logits
    sharing = problem.target.sharing

    def bias(step: torch.Tensor) -> torch.Tensor:
        moved = Problem(problem.behaviour, Policy(old + step * direction, sharing), problem.reward)
        return mean_of(moved, "cumulative") - moved.gradient

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    at_zero, slope = torch.func.jvp(bias, (zero,), (one,))
    assert at_zero.norm().item() <= EXACT
    scale = Problem(problem.behaviour, problem.behaviour, problem.reward).gradient.norm()
    assert relative_bias(1e-5, 2, "cumulative") / 1e-5 == pytest.approx(
        (slope.norm() / scale).item(), rel=1e-4
    )


def test_variance_of_the_weight_needs_no_more_than_conditional_chi_squares() -> None:
    """Var(ρ_t) = Π_{s≤t}(1 + χ²_s) − 1 if χ²_s does not depend on the prefix, but not in general."""
    for sharing, holds in (("position", True), ("tabular", False)):
        world = world_of(problem_of("terminal", sharing=sharing))
        variance = (
            sum(world.chance(world.old, o) * math.prod(world.ratios(o)) ** 2 for o in world.trajectories())
            - 1
        )
        product = 1.0
        for s in range(world.horizon):
            # The mean of χ²_s over the prefixes that b reaches.
            product *= 1 + sum(
                world.chance(world.old, o) * (world.ratios(o)[s] ** 2 - 1) for o in world.trajectories()
            )
        assert (abs(variance - (product - 1)) <= EXACT) == holds


def test_log_ratio_spread_grows_as_the_root_of_t_under_independent_increments_only() -> None:
    """With one row for all positions, std is σ√t and the mean −t KL. If a first action decides, both grow faster."""
    steady = analyse(Setup(sharing="stationary", distance=0.3).problem(), [FAMILIES["unit"]]).spread
    assert steady.exponent == pytest.approx(0.5, abs=1e-12)
    for t in range(1, 9):
        assert steady.std[t - 1] == pytest.approx(steady.std[0] * math.sqrt(t), rel=1e-11)
        assert steady.mean[t - 1] == pytest.approx(steady.mean[0] * t, rel=1e-11)

    # π leaves b after a first 0 and follows it after a first 1: the drift −t KL of half the responses spreads as t.
    tree = Tree(2, 8)
    sharing = Sharing("tabular", tree)
    chances = torch.full((sharing.rows, 2), 0.5, dtype=torch.float64)
    moved = chances.clone()
    for t in range(1, tree.horizon):
        after_0 = sharing.rows_of_level(t)[: 2 ** (t - 1)]
        chances[after_0] = torch.tensor([0.99, 0.01], dtype=torch.float64)
    reward = torch.zeros(tree.trajectories, dtype=torch.float64)
    split = Problem(Policy(chances.log(), sharing), Policy(moved.log(), sharing), reward)
    late = analyse(split, [FAMILIES["unit"]]).spread.std
    assert math.log(late[7] / late[3]) / math.log(7 / 3) > 0.85  # increments begin at t = 2


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
def test_10_a_product_that_forgets_lies_between_token_and_prefix(decay: float) -> None:
    """Bias and variance are those of loops; its mean weight is below 1; only λ = 1 meets the prefix's target."""
    problem = Setup(horizon=5, distance=0.5).problem()
    world = world_of(problem)
    spec = f"ctpo-decay?decay={decay}&surrogate=stop-gradient&log_low=inf&log_high=inf"
    estimator = objective_estimator(spec, problem)
    analysis = analyse(problem, [estimator, FAMILIES["token"], FAMILIES["cumulative"]])
    row, token, cumulative = analysis.rows
    mean, variance, terms = world.moments(f"decay={decay}")
    unit = analysis.unit
    bias = (as_table(mean, problem.target.logits) - problem.gradient).norm().item() / unit
    assert row.bias == pytest.approx(bias, rel=1e-6)
    assert row.variance == pytest.approx(variance / unit**2, rel=1e-6)
    assert row.term_variance == pytest.approx([each / unit**2 for each in terms], rel=1e-6)
    weights = [
        sum(world.chance(world.old, o) * world.weight(f"decay={decay}", o, t) for o in world.trajectories())
        for t in range(5)
    ]
    if decay == 0.0:
        assert (row.bias, row.variance) == pytest.approx((token.bias, token.variance), rel=1e-6)
    elif decay == 1.0:
        assert (row.bias, row.variance) == pytest.approx((cumulative.bias, cumulative.variance), rel=1e-6)
        assert weights == pytest.approx([1.0] * 5)
    else:
        assert all(each < 1 for each in weights[1:])
        assert row.own_bias > 1e-3  # exact for neither
