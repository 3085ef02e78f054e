"""The pull of clipping against the gradient of a distance from the band, and the cost of weights against formulas."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from ctpo.cli.main import main
from ctpo.lab.theory import FAMILIES, Problem, Setup, objective_estimator, pulls


def distance_gradient(
    problem: Problem, low: float, high: float, dual: float, power: float, whole: bool
) -> Tensor:
    """−∇ of a/2 · E_b Σ_t of how far the weight lies outside of its band, by autograd; a is the mean of |A|.

    Below the band that is e^l − ρ. Above, it grows to the dual bound: min(ρ, e^d) − e^u. The weight is a token's ratio,
    or with `whole` that of its prefix, differentiated in the last token.
    """
    logits = problem.target.logits.clone().requires_grad_()
    tree = problem.tree
    chances = torch.ones(1, dtype=torch.float64)
    before, loss = torch.zeros(1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    table = logits.log_softmax(-1)
    for t in range(tree.horizon):
        rows = problem.target.sharing.rows_of_level(t)
        old = problem.behaviour.log_probs[t]
        d = table[rows] - old
        x = d + before[:, None] if whole else d
        chances = (chances[:, None] * old.exp()).reshape(-1)
        down, up, top = (bound * (t + 1) ** power for bound in (low, high, dual))
        out = (math.exp(-down) - x.exp()).clamp(min=0) + (
            x.exp().clamp(max=math.exp(top)) - math.exp(up)
        ).clamp(min=0)
        loss = loss + chances @ out.reshape(-1)
        before = (before[:, None] + d.detach()).reshape(-1)
    a = float(chances @ (problem.reward - chances @ problem.reward).abs())
    (gradient,) = torch.autograd.grad(loss, logits)
    return -a / 2 * gradient


@pytest.mark.parametrize("sharing", ["tabular", "stationary"])
@pytest.mark.parametrize(
    ("spec", "band", "whole"),
    [
        ("ppo", (-math.log(0.8), math.log(1.2), 60.0, 0.0), False),
        ("grpo?ratio_dual=1.5", (-math.log(0.8), math.log(1.28), math.log(1.5), 0.0), False),
        ("ctpo", (0.025, 0.05, 0.05, 0.5), True),
        ("ctpo?log_dual=none", (0.025, 0.05, 30.0, 0.5), True),
        ("ctpo-decay?decay=1&log_high=0.03", (0.025, 0.03, 0.05, 0.5), True),
    ],
)
def test_the_pull_is_the_gradient_of_a_distance_from_the_band(
    spec: str, band: tuple[float, float, float, float], whole: bool, sharing: str
) -> None:
    problem = Setup(horizon=6, distance=0.6, sharing=sharing).problem()
    low, high, dual, power = band
    expected = distance_gradient(problem, low, high, dual, power, whole)
    (pull,) = pulls(problem, [objective_estimator(spec, problem)])
    unit = problem.gradient.norm().item()
    assert pull.size == pytest.approx(expected.norm().item() / unit, rel=1e-10)
    assert pull.size > 0.05
    home = sum_of_scores(problem)
    cosine = (expected * home).sum() / (expected.norm() * home.norm())
    assert pull.back == pytest.approx(cosine.item(), rel=1e-9)


def sum_of_scores(problem: Problem) -> Tensor:
    """−∇KL(b ‖ π), by autograd."""
    logits = problem.target.logits.clone().requires_grad_()
    chances, kl = torch.ones(1, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for t in range(problem.tree.horizon):
        old = problem.behaviour.log_probs[t]
        chances = (chances[:, None] * old.exp()).reshape(-1)
        kl = kl - chances @ logits.log_softmax(-1)[problem.target.sharing.rows_of_level(t)].reshape(-1)
    (gradient,) = torch.autograd.grad(kl, logits)
    return -gradient


def test_what_does_not_clip_by_the_sign_of_the_advantage_has_none() -> None:
    problem = Setup(horizon=5, distance=0.8).problem()
    weights = "surrogate=stop-gradient&decay"
    specs = [
        "cispo?ratio_high=0.1",
        "sequence-quantile",
        f"ctpo-decay?{weights}=0.9",
        f"ctpo-decay?{weights}=1",
    ]
    estimators = [*FAMILIES.values(), *(objective_estimator(spec, problem) for spec in specs)]
    for pull in pulls(problem, estimators):
        assert pull.size < 1e-14, pull.name
        assert math.isnan(pull.back)


def test_the_cost_of_a_product_grows_exponentially() -> None:
    """For independent positions it is the mean of (1 + χ²)^t, and (e^{s²} − 1)/s² for many small steps."""
    problem = Setup(horizon=12, distance=0.2, sharing="stationary").problem()
    old, new = problem.behaviour.log_probs[0].exp()[0], problem.target.log_probs[0].exp()[0]
    second = float((new**2 / old).sum())
    token, cumulative, sequence = pulls(problem, [FAMILIES[n] for n in ("token", "cumulative", "sequence")])
    assert token.cost == pytest.approx(second, rel=1e-12)
    assert cumulative.cost == pytest.approx(sum(second**t for t in range(1, 13)) / 12, rel=1e-12)
    assert sequence.cost == pytest.approx(second**12, rel=1e-12)
    s2 = 12 * math.log(second)
    assert cumulative.cost == pytest.approx((math.exp(s2) - 1) / s2, rel=s2 / 12)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["theory", "--pull", "--horizon", "4", "--family", "token", "--objective", "ppo?ratio_low=0.01"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    lines = [line.split()[:2] for line in shown.splitlines()]
    assert ["token", "none"] in lines
    assert main([*words, "--json"]) == 0
    token, ppo = json.loads(capsys.readouterr().out)["draws"][0]["pull"]
    assert (token["size"], token["back"]) == (0.0, None)
    problem = Setup(horizon=4).problem()
    (expected,) = pulls(problem, [objective_estimator("ppo?ratio_low=0.01", problem)])
    assert ppo == vars(expected)
