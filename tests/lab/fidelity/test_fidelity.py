"""Gradient fidelity against enumeration by hand, autograd and identities."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rollout.conftest import make_model, make_tokenizer
from torch import nn

from ctpo.lab.fidelity.coefficients import (
    coefficients,
    null_advantages,
    objective_of,
    on_policy,
    recipe_advantages,
)
from ctpo.lab.fidelity.exact import exact_norms
from ctpo.lab.fidelity.kept import Kept
from ctpo.lab.fidelity.measure import FIGURES, Moments, effective_share, estimates, figures, reference_cosine
from ctpo.lab.fidelity.reference import Reference
from ctpo.lab.fidelity.report import Design, Gradients, Measured, Measurement
from ctpo.lab.fidelity.samples import Samples
from ctpo.lab.fidelity.sketch import TOLERANCE, Scorer, check, dot
from ctpo.objectives import preset
from ctpo.objectives.reductions import Reduction

T, PARAMETERS = 3, 6
SUM = Reduction("seq-mean-token-mean")
PI = (0.25, 0.75)
"""The target's probabilities of 0 and 1. The behaviour policy draws both alike."""


class Bigram(nn.Module):
    """A policy whose logits depend on the token before; token 2 is the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(PI).log().repeat(3, 1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def responses(counts: dict[tuple[int, ...], int], log_prob: Any, copies: int = 1) -> Samples:
    """Each response as often as a policy draws it, so that a mean over them is the policy's expectation."""
    rows = [row for row, count in counts.items() for _ in range(count)] * copies
    actions = torch.tensor(rows)
    count = len(rows)
    return Samples(
        ids=torch.cat([torch.full((count, 1), 2), actions], 1),
        prompt=torch.ones(count, dtype=torch.long),
        length=torch.full((count,), T),
        mask=torch.ones(count, T, dtype=torch.bool),
        logps=torch.tensor([[log_prob(a) for a in row] for row in rows]),
        rewards=torch.tensor([[float(row[0] == row[2] == 1)] for row in rows], dtype=torch.float64),
        turns=torch.zeros(count, T, dtype=torch.long),
        turn_rewards=torch.zeros(count, 0, dtype=torch.float64),
    )


ALL = list(itertools.product((0, 1), repeat=T))
UNIFORM = dict.fromkeys(ALL, 1)
TARGET = {row: round(64 * math.prod(PI[a] for a in row)) for row in ALL}


def known(along: np.ndarray[Any, Any]) -> Reference:
    """A reference without noise: its parts are equal."""
    return Reference(np.full((4, 4), 1 / 16), np.repeat(along[:, None] / 4, 4, 1), np.ones(4))


def measured(samples: Samples) -> tuple[Measured, np.ndarray[Any, Any], dict[str, torch.Tensor]]:
    """A sample with an exact sketch: the directions are √n times a basis, so that the mean of squares is the norm."""
    scorer = Scorer(Bigram(), temperature=1.0, vocabulary=2)
    target = responses(TARGET, lambda a: math.log(PI[a]))
    k = coefficients(on_policy(SUM), target.logps, target, advantages(target), len(target))
    gradient = scorer.gradient(target, k)
    u = {"table": gradient["table"] / math.sqrt(dot(gradient, gradient))}
    quarter = {"table": u["table"] / 4}
    basis = math.sqrt(PARAMETERS) * torch.eye(PARAMETERS)
    directions = [*[quarter] * 4, *({"table": row.reshape(3, 2)} for row in basis)]
    sketch = torch.stack([scorer.derivative(samples, each) for each in directions], 1)
    along = np.array([dot(each, u) for each in directions[4:]])
    return Measured(samples=samples, logps=scorer.log_probs(samples), sketch=sketch), along, u


def advantages(samples: Samples) -> torch.Tensor:
    return (samples.rewards - 0.3).expand(samples.mask.shape).float()


def design(along: np.ndarray[Any, Any], batch: int, blocks: int) -> Design:
    return Design(
        group=1, batch=batch, blocks=blocks, reduction=SUM, reference=known(along), lengths=(), seed=0
    )


def score(previous: int, action: int) -> np.ndarray[Any, Any]:
    """∇ log π(action | previous) of the bigram policy, by hand."""
    gradient = np.zeros((3, 2))
    gradient[previous] = -np.array(PI)
    gradient[previous, action] += 1
    return gradient.reshape(-1)


def expectation(weight: Any) -> np.ndarray[Any, Any]:
    """E_b mean_t weight(r_t, A) ∇log π_t by hand, for a weight that contains the advantage."""
    total = np.zeros(PARAMETERS)
    for row in ALL:
        advantage = float(row[0] == row[2] == 1) - 0.3
        for t, action in enumerate(row):
            ratio = PI[action] / 0.5
            total += weight(ratio, advantage) * score(2 if t == 0 else row[t - 1], action) / T / len(ALL)
    return total


def in_groups_of_4(*, scale_rewards: str) -> Any:
    """The settings that a measurement reads, with TRL's advantages of whole responses."""
    return SimpleNamespace(
        num_generations=4,
        reward_weights=None,
        advantages="trl",
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards=scale_rewards,
    )


def whole(gradients: Gradients, objective: Any, advantages: torch.Tensor) -> Moments:
    """The moments of all responses."""
    k = gradients.coefficients(objective, advantages)
    return gradients.moments(k, gradients.responses(k), [np.ones(len(k), bool)])[0]


def test_bias_and_pull_are_those_of_enumeration() -> None:
    low, high = 0.2, 0.28
    clipped = objective_of(preset("grpo", ratio_low=low, ratio_high=high), SUM)
    off, along, u = measured(responses(UNIFORM, lambda a: math.log(0.5), copies=3))
    on, _, _ = measured(responses(TARGET, lambda a: math.log(PI[a]), copies=3))
    shape = design(along, 8, 3)
    one = Gradients(off, shape)
    two = Gradients(on, design(along, 64, 3))
    moments, own = (
        whole(one, clipped, advantages(off.samples)),
        whole(two, on_policy(SUM), advantages(on.samples)),
    )

    def kept(ratio: float, sign: float) -> float:
        return ratio * (ratio <= 1 + high if sign > 0 else ratio >= 1 - low)

    wanted = expectation(lambda r, a: kept(r, a) * a)
    truth = np.zeros(PARAMETERS)
    for row in ALL:
        advantage = float(row[0] == row[2] == 1) - 0.3
        scores = sum(score(2 if t == 0 else row[t - 1], a) for t, a in enumerate(row))
        truth += math.prod(PI[a] for a in row) * advantage * scores / T
    direction = truth / np.linalg.norm(truth)
    np.testing.assert_allclose(u["table"].flatten().numpy(), direction, atol=1e-5)
    found = figures(moments, own, 1.0, 8)
    assert found["component"] == pytest.approx(wanted @ direction / np.linalg.norm(truth), abs=1e-5)
    assert found["cosine"] == pytest.approx(wanted @ direction / np.linalg.norm(wanted), abs=1e-4)

    many, along, _ = measured(responses(UNIFORM, lambda a: math.log(0.5), copies=300))
    null = Gradients(many, design(along, 8, 8))
    draw = null_advantages(many.samples, 1.0, 0, by_turn=False)
    gradients = [null.responses(null.coefficients(clipped, sign * draw)) for sign in (1.0, -1.0)]
    pull = null.signals((gradients[0] + gradients[1]) / 2)
    # E A over A > 0 is 1/√(2π), and what is clipped depends on the sign of A alone.
    half = 1 / math.sqrt(2 * math.pi)
    expected = expectation(lambda r, a: half * (kept(r, 1) - kept(r, -1))) @ direction
    error = pull.signals[:, 0].std(ddof=1) / math.sqrt(8)
    assert expected < -10 * error  # clipping pulls back to the behaviour policy
    assert abs(pull.signal() - expected) < 4 * error


def test_identical_policies_agree_with_on_policy_sampling() -> None:
    samples = responses(TARGET, lambda a: math.log(PI[a]), copies=4)
    same, along, _ = measured(samples)
    shape = Design(group=4, batch=16, blocks=4, reduction=SUM, reference=known(along), lengths=(2,), seed=0)
    names = ("reinforce", "grpo", "cispo", "gspo", "ctpo", "ctpo-fixed", "sequence", "minpro", "sapo")
    config = in_groups_of_4(scale_rewards="none")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    place = (order[:, None] * T + torch.arange(T)).flatten()
    same = Measured(samples=samples.rows(order), logps=same.logps[order], sketch=same.sketch[place])
    measurement = Measurement(same, {n: objective_of(preset(n), SUM) for n in names}, config, shape)
    result, target = measurement.pair(same), measurement.as_json
    own = target["on_policy"]["response"]
    for row in result["objectives"]:
        found = row["advantages"]["response"]
        for key in FIGURES:
            assert own[key]["value"] is not None
            assert alike(found[key]["value"], own[key]["value"]), (row["objective"], key)
        assert found["component"]["value"] == pytest.approx(1, rel=1e-4)
        assert found["component"]["stderr"] < 1e-4
        assert abs(found["pull"]["value"]) < 1e-4
        parts = [each["value"] for each in found["octaves"]]
        assert parts == pytest.approx([each["value"] for each in own["octaves"]], rel=1e-4, abs=1e-6)
        assert math.fsum(parts) == pytest.approx(1, rel=1e-4)
        assert [each["value"] for each in row["ess"]] == pytest.approx([1.0] * len(row["ess"]), rel=1e-4)
    assert set(result["recommended"]["response"]["within_noise"]) == set(names)
    assert result["drift"]["log_ratio_std"] == pytest.approx(0, abs=1e-5)


def test_exact_norms_are_those_of_a_sketch_along_a_whole_basis(tmp_path: Path) -> None:
    samples = responses(UNIFORM, lambda a: math.log(0.5), copies=6)
    samples.mask[::3, 2] = False  # two lengths
    by_sketch, along, _ = measured(samples)
    shape = Design(group=4, batch=16, blocks=3, reduction=SUM, reference=known(along), lengths=(3,), seed=0)
    scorer, kept = Scorer(Bigram(), temperature=1.0, vocabulary=2), Kept(tmp_path / "kept", {})
    parts = len(shape.reference)
    exact = dataclasses.replace(
        by_sketch,
        sketch=by_sketch.sketch[:, :parts],
        norms=exact_norms(kept, scorer, samples, ["samples"], "target", 4, 3),
    )
    config = in_groups_of_4(scale_rewards="group")
    chosen = {name: objective_of(preset(name), SUM) for name in ("ctpo", "grpo", "cispo")}
    measurement = [Measurement(each, chosen, config, shape).pair(each) for each in (by_sketch, exact)]
    assert alike(*measurement)
    shown = measurement[1]["objectives"][0]["advantages"]["response"]
    assert all(shown[key]["stderr"] is not None for key in FIGURES)
    assert len(list((tmp_path / "kept" / "target").glob("norms-*.npz"))) == 4  # on-policy, and each objective
    assert alike(Measurement(exact, chosen, config, shape).pair(exact), measurement[1])  # from what was kept
    assert len(measurement[0]["lengths"]) == 2


def alike(one: Any, other: Any) -> bool:
    """Whether two results have the same structure and figures."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == (pytest.approx(other, rel=1e-4, abs=1e-6) if isinstance(other, float) else other)


def test_credit_of_turns_is_that_of_the_trainer() -> None:
    """Two turns, with the weights of the rewards, and one response that only one reward function has judged."""
    nan = math.nan
    samples = Samples(
        ids=torch.zeros(2, 5, dtype=torch.long), prompt=torch.ones(2, dtype=torch.long),
        length=torch.tensor([4, 4]), mask=torch.ones(2, 4, dtype=torch.bool), logps=torch.zeros(2, 4),
        rewards=torch.tensor([[1.0, 8.0], [0.0, nan]], dtype=torch.float64),
        turns=torch.tensor([[0, 0, 1, 1]] * 2), turn_rewards=torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double(),
    )  # fmt: skip
    config: Any = SimpleNamespace(
        num_generations=2, reward_weights=[1.0, 0.5], advantages="each-turn", scale_rewards="none"
    )
    # The first response earns 1 in its first turn; its other reward of .5 · 8 counts in the last one.
    assert recipe_advantages(samples, config).tolist() == [[0.5, 0.5, 2.0, 2.0], [-0.5, -0.5, -2.0, -2.0]]
    draw = null_advantages(samples, 3.0, 0, by_turn=True)
    assert torch.equal(draw[:, 0], draw[:, 1])
    assert not torch.equal(draw[:, 1], draw[:, 2])
    assert torch.allclose(draw, 3 * null_advantages(samples, 1.0, 0, by_turn=True))


def test_the_pull_has_the_scale_of_the_advantages() -> None:
    """A reward ten times as large leaves every figure as it is, though advantages are not divided by its spread."""
    samples = responses(UNIFORM, lambda a: math.log(0.5), copies=6)
    found = []
    for scale in (1.0, 10.0):
        scaled = dataclasses.replace(samples, rewards=scale * samples.rewards)
        each, along, _ = measured(scaled)
        shape = Design(group=4, batch=16, blocks=3, reduction=SUM, reference=known(along), lengths=(), seed=0)
        config = in_groups_of_4(scale_rewards="none")
        chosen = {"grpo": objective_of(preset("grpo"), SUM)}
        found.append(Measurement(each, chosen, config, shape).pair(each)["objectives"])
    assert abs(found[0][0]["advantages"]["response"]["pull"]["value"]) > 0.01
    assert alike(*found)


def test_the_effective_share_and_its_error_are_those_of_single_blocks() -> None:
    generator = np.random.default_rng(0)
    weights, mask = generator.exponential(size=(12, 2)), np.ones((12, 2), bool)
    mask[0, 1] = False
    blocks = np.repeat(np.arange(4), 3)
    first, second, third = effective_share(weights, mask, [1, 2, 3], blocks)

    def share(w: Any) -> float:
        return float(w.sum() ** 2 / (len(w) * (w**2).sum()))

    assert first.value == pytest.approx(share(weights[:, 0]))
    assert second.value == pytest.approx(share(weights[1:, 1]))
    assert math.isnan(third.value)
    without = [share(weights[blocks != block, 0]) for block in range(4)]
    assert first.error == pytest.approx(math.sqrt(3 / 4 * np.square(without - np.mean(without)).sum()))


def test_check_compares_with_autograd() -> None:
    samples = responses(UNIFORM, lambda a: math.log(0.5))
    scorer = Scorer(Bigram(), temperature=0.7, vocabulary=2)
    directions = [scorer.direction(0, j) for j in range(4)]
    sketch = torch.stack([scorer.derivative(samples, each) for each in directions], 1)
    along = np.array([[dot(directions[0], each)] for each in directions[1:]])
    reference = Reference(np.array([[dot(directions[0], directions[0])]]), along, np.ones(1))
    assert check(scorer, samples, directions.__getitem__, sketch, reference).error < 1e-5
    sketch[:, 2] *= 1.1  # one direction is wrong
    assert check(scorer, samples, directions.__getitem__, sketch, reference).error > TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
def test_derivatives_of_a_transformer_are_those_of_differences(tied: bool) -> None:
    """The padding token ends turns too, and its embedding has a derivative in both modes."""
    model = make_model(make_tokenizer()).double()
    model.config.tie_word_embeddings = tied
    model.tie_weights()
    end = model.config.pad_token_id
    ids = torch.tensor([[5, 6, end, 7, 8, end, 9, end], [5, 6, 7, 8, 9, end, 10, end]])
    samples = Samples(
        ids=ids, prompt=torch.tensor([3, 2]), length=torch.tensor([5, 6]),
        mask=torch.tensor([[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]]).bool(), logps=torch.zeros(2, 6),
        rewards=torch.zeros(2, 1), turns=torch.zeros(2, 6, dtype=torch.long), turn_rewards=torch.zeros(2, 0),
    )  # fmt: skip
    scorer = Scorer(model, temperature=0.7, vocabulary=model.config.vocab_size)
    k = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).double() * samples.mask
    direction = scorer.direction(0, 1)
    along = float(k[samples.mask] @ scorer.derivative(samples, direction).double())
    assert along == pytest.approx(dot(direction, scorer.gradient(samples, k)), rel=1e-5)

    def difference(step: float) -> float:
        sums = []
        for way in (step, -step):
            moved = {name: each + way * direction[name] for name, each in scorer.parameters.items()}
            sums.append(float((scorer._score(moved, samples).double() * k).sum()))
        return (sums[0] - sums[1]) / (2 * step)

    assert along == pytest.approx((4 * difference(1e-4) - difference(2e-4)) / 3, rel=3e-3)  # Richardson's


def test_values_are_right_on_average_and_errors_are_those_of_repeated_draws() -> None:
    """The reference has noise of its own, which is in the errors, too."""
    generator = np.random.default_rng(0)
    n, count, draws, parts = 50, 400, 200, 4
    basis = math.sqrt(n) * np.eye(n)
    found, squares, cosines = [], [], []
    for _ in range(draws):
        # Groups with mean (1, 0, …) and unit noise; a reference of 4 parts, a quarter of whose square is noise.
        x = generator.standard_normal((count, n))
        x[:, 0] += 1.0
        g = generator.standard_normal((parts, n)) * math.sqrt(parts / n / 3)
        g[:, 0] += 1.0
        g /= np.linalg.norm(g.sum(0))
        reference = Reference(g @ g.T, basis @ g.T, np.ones(parts))
        moments = Moments.of(np.concatenate([x @ g.T, x @ basis.T], 1), 8, reference)
        squares.append(moments.norm_square)
        cosines.append(reference_cosine(reference))
        found.append(estimates(moments, moments, reference, 8)["batch_cosine"])
    values = np.array([each.value for each in found])
    assert np.mean(squares) == pytest.approx(1.0, abs=0.05)  # 1 + 50/400 if noise added to it
    assert np.mean([each.value for each in cosines]) == pytest.approx(math.sqrt(0.75), abs=0.03)
    # With four parts, the jackknife is on the safe side.
    ratio = np.mean([each.error for each in cosines]) / np.std([each.value for each in cosines])
    assert 1 < ratio < 1.7
    assert values.mean() == pytest.approx(1 / math.sqrt(1 + n / 8), rel=0.05)
    print(np.sqrt(np.mean([each.error**2 for each in found])), values.std(), values.mean())
    assert 1 < np.sqrt(np.mean([each.error**2 for each in found])) / values.std() < 1.5
    inside = [abs(each.value - 1 / math.sqrt(1 + n / 8)) < each.reach for each in found]
    assert 0.88 < np.mean(inside) <= 1


def test_the_reference_is_corrected_for_the_noise_of_its_parts() -> None:
    """Two halves with signal 1 and noise variance v each: c = 1/(1 + v), and the whole has cosine 1/√(1 + v/2)."""
    along = np.zeros((1, 2))
    for v in (0.1, 1.0, 3.0):
        gram = np.array([[1 + v, 1.0], [1.0, 1 + v]])
        assert Reference(gram, along, np.ones(2)).cosine == pytest.approx(1 / math.sqrt(1 + v / 2))
    assert Reference(np.array([[1, -0.2], [-0.2, 1]]), along, np.ones(2)).cosine == 0
    uneven = np.array([[9 + 3, 3.0], [3.0, 1 + 1]])  # 3 times and once the signal, with noise in proportion
    assert Reference(uneven, along, np.array([3.0, 1.0])).cosine == pytest.approx(math.sqrt(16 / 20))
