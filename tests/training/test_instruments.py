"""Figures within updates, of the split into signal and pull, and of gradients, against oracles of their own."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.objectives import preset, preset_names
from ctpo.runs.directory import RunDirectory
from ctpo.training.diagnostics.gradients import UpdateGradients
from ctpo.training.diagnostics.profile import PositionProfile, ProfileSums, measured_positions
from ctpo.training.diagnostics.pull import null_sizes, signal_and_pull
from ctpo.training.diagnostics.record import profile_figures, profile_line

LENGTH, UPDATES = 460, 8


class Processes:
    """An accelerator of one process, or of two where `other` is what the second one sends."""

    device, num_processes, process_index, scaler = torch.device("cpu"), 1, 0, None

    def __init__(self, other: list[torch.Tensor] | None = None) -> None:
        self.other, self.sent = other, []  # type: ignore[var-annotated]

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        self.sent.append(values)
        return values if self.other is None else torch.cat([values, self.other.pop(0)])


def walk(update: int, scale: float, rows: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Log-probs, anchor, advantages and mask of walks with the spread update·scale·√t and the mean −spread²/2."""
    g = torch.Generator().manual_seed(100 * seed + update)
    step = update * scale
    d = -step * step / 2 + step * torch.randn(rows, LENGTH, generator=g, dtype=torch.float64)
    anchor = torch.full((rows, LENGTH), -40.0, dtype=torch.float64)
    signs = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0).double()
    return anchor + d, anchor, signs, torch.ones(rows, LENGTH, dtype=torch.bool)


def profile_of(parts: list[tuple[int, tuple[torch.Tensor, ...]]], accelerator: Any) -> ProfileSums:
    profile = PositionProfile(lambda: preset("ctpo"), LENGTH)
    for update, part in parts:
        profile.add(*part, update=update)
    sums = profile.close(accelerator)
    assert sums is not None
    return sums


def exponent(t: np.ndarray, std: np.ndarray) -> float:
    return float(np.polyfit(np.log(t), np.log(std), 1)[0])


@pytest.mark.parametrize(("scale", "pooled"), [(0.0446, 0.62), (0.435, 0.84)])
def test_walks_grow_with_the_square_root_though_their_means_move(scale: float, pooled: float) -> None:
    """Pooled over updates, the same walks would read the exponent of the closed form, which is far from one half."""
    parts = [(update, walk(update, scale, 256)) for update in range(UPDATES)]
    sums = profile_of(parts, Processes())
    line = profile_line(sums, preset("ctpo"))
    assert line["spread_power"] == pytest.approx(0.5, abs=0.02)
    t, u = np.arange(1, LENGTH + 1), np.arange(UPDATES) * scale
    variance = (u**2)[:, None] * t
    within = np.sqrt(variance.mean(0))
    assert exponent(t, np.sqrt(variance.mean(0) + (-variance / 2).var(0))) > pooled - 0.02
    last, count = line["position_mean"][-1], line["count"]
    assert line["spread"][-1] == pytest.approx(within[round(last) - 1], rel=0.08)
    assert line["log_ratio_std"][-1] > 1.5 * line["spread"][-1]
    assert sum(count) == UPDATES * 256 * LENGTH


def test_the_spread_is_exact_at_every_position() -> None:
    """Of ragged responses in two updates: the unbiased variance at one position of one update, pooled over those."""
    g = torch.Generator().manual_seed(4)
    parts, squares, freedom = [], np.zeros(LENGTH), np.zeros(LENGTH)
    for update in (3, 4):
        logps, anchor, signs, mask = walk(1 + update, 0.02, 12, seed=update)
        mask &= torch.arange(LENGTH) < torch.randint(1, LENGTH, (12, 1), generator=g)
        signs[5] = 0.0
        parts.append((update, (logps, anchor, signs, mask)))
        c = (logps - anchor).cumsum(1).numpy()
        for t in range(LENGTH):
            values = c[[bool(mask[row, t]) and row != 5 for row in range(12)], t]
            if len(values) > 1:
                squares[t] += ((values - values.mean()) ** 2).sum()
                freedom[t] += len(values) - 1
    line = profile_line(profile_of(parts, Processes()), preset("ctpo"))
    for place, positions in enumerate(measured_positions(line["edge"]).tolist()):
        at = [t - 1 for t in positions if t]
        width = line["edge"][place] - (line["edge"][place - 1] if place else 0)
        assert line["spread_count"][place] == pytest.approx(freedom[at].sum() * width / len(at), rel=1e-6)
        if freedom[at].sum():
            expected = math.sqrt(squares[at].sum() / freedom[at].sum())
            assert line["spread"][place] == pytest.approx(expected, rel=1e-6)
        else:
            assert line["spread"][place] is None


def test_measured_positions_have_the_mean_of_their_bin() -> None:
    edges = [1, 2, 5, 13, 22, 60, 1000]
    for (first, last), row in zip(
        itertools.pairwise([0, *edges]), measured_positions(edges).tolist(), strict=True
    ):
        chosen = [t for t in row if t]
        assert len(set(chosen)) == len(chosen) == min(last - first, 8)
        assert min(chosen) > first
        assert max(chosen) <= last
        assert sum(chosen) / len(chosen) == pytest.approx((first + 1 + last) / 2, abs=0.51)


def test_processes_and_micro_batches_share_the_means_of_an_update() -> None:
    """Two processes with two micro-batches each give the sums of one process. Each alone would give others."""
    whole = [(update, walk(update, 0.1, 8)) for update in (2, 5)]
    halves = [
        [(update, tuple(each[rows] for each in part)) for update, part in whole for rows in (first, second)]
        for first, second in ((slice(0, 2), slice(2, 4)), (slice(4, 6), slice(6, 8)))
    ]
    second = Processes()
    profile_of(halves[1], second)
    got, expected = profile_of(halves[0], Processes(second.sent)), profile_of(whole, Processes())
    torch.testing.assert_close(got.flat(), expected.flat(), rtol=1e-9, atol=1e-9, equal_nan=True)
    alone = profile_of(halves[0], Processes()) + profile_of(halves[1], Processes())
    assert not torch.allclose(alone.within, expected.within)
    assert not torch.allclose(alone.effective, expected.effective, rtol=1e-3)


def test_effective_samples_are_those_of_an_update() -> None:
    """Two updates, each with equal weights of its own: none of its samples is lost."""
    logps, anchor, signs, mask = walk(0, 0.1, 6)
    sums = profile_of(
        [(0, (logps, anchor, signs, mask)), (1, (logps - 0.01, anchor, signs, mask))], Processes()
    )
    line = profile_line(sums, preset("grpo"))
    assert line["ess"][0] == pytest.approx(1.0)
    assert line["updates"]["update"] == [1, 2]
    assert line["updates"]["ess"][0] == pytest.approx(1.0)
    assert line["updates"]["ess"][1] < 0.9


@pytest.mark.parametrize("name", ["grpo", "ctpo", "cispo", "gspo"])
def test_the_pull_is_the_mean_over_all_ways_to_deal_out_the_rewards(name: str) -> None:
    g = torch.Generator().manual_seed(1)
    group, length = 5, 12
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.4], dtype=torch.float64)
    advantages = (rewards - rewards.mean()) / rewards.std()
    old = -3 * torch.rand(group, length, generator=g, dtype=torch.float64)
    logps = old + 0.3 * torch.randn(group, length, generator=g, dtype=torch.float64)
    mask, objective = torch.ones(group, length, dtype=torch.bool), preset(name)

    def weights(signs: torch.Tensor) -> torch.Tensor:
        return objective.examine(logps, old, signs, mask).log_left.exp().double()

    dealt = [advantages[list(order)] for order in itertools.permutations(range(group))]
    mean = torch.stack([each[:, None] * weights(each) for each in dealt]).mean(dim=0)
    sizes = null_sizes(advantages, group)
    assert sizes is not None
    left, other = weights(advantages), weights(-advantages)
    signal, pull = signal_and_pull(advantages[:, None], left, other, sizes[:, None])
    torch.testing.assert_close(pull, mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(signal + pull, advantages[:, None] * left)
    profile = PositionProfile(lambda: objective, length)
    profile.add(logps, old, advantages, mask, null_size=sizes)
    sums = profile.close(Processes())
    assert sums is not None
    figures = profile_figures(sums)
    x = objective.examine(logps, old, advantages, mask).log_weight
    assert figures["gradient_pull"] == pytest.approx(float(mean.abs().mean()), rel=1e-5, abs=1e-8)
    assert figures["gradient_signal"] == pytest.approx(float(signal.abs().mean()), rel=1e-5)
    assert figures["gradient_pull_along"] == pytest.approx(float((mean * x).mean()), rel=1e-5, abs=1e-8)
    assert figures["gradient_signal_along"] == pytest.approx(float((signal * x).mean()), rel=1e-4, abs=1e-6)
    assert (figures["gradient_pull_along"] < -0.01) is (name in ("grpo", "ctpo", "gspo"))


def test_groups_without_a_null() -> None:
    assert null_sizes(torch.ones(6), 4) is None
    sizes = null_sizes(torch.tensor([0.0, 2.0, -1.0, 0.0, 0.0, 0.0]), 3)
    assert sizes is not None
    assert sizes.tolist() == [1.5, 1.5, 1.5, 0.0, 0.0, 0.0]


def test_each_turn_has_a_size_of_its_own() -> None:
    """Rewards of one turn are dealt out among the responses that have it."""
    sizes = null_sizes(
        torch.tensor([[1.0, 3.0], [-1.0, 0.0], [0.0, -3.0], [0.5, 0.0], [0.0, 0.0], [-0.5, 0.0]]), 3
    )
    assert sizes is not None
    assert sizes.tolist() == [[1.0, 3.0]] * 3 + [[0.5, 0.0]] * 3


def test_objectives_that_look_at_the_whole_batch_have_no_split() -> None:
    logps, anchor, signs, mask = walk(2, 0.1, 6)
    objective = preset("sequence-quantile")
    profile = PositionProfile(lambda: objective, LENGTH)
    profile.add(logps, anchor, signs, mask, objective(logps, anchor, signs, mask, details=True).details)
    sums = profile.close(Processes())
    assert sums is not None
    assert profile_line(sums, objective)["gradient_pull"][0] is None
    assert "gradient_pull" not in profile_figures(sums)


def test_clipping_below_removes_gradient() -> None:
    """Tokens far below the band with A < 0: they weigh nothing, and half of the responses are cut all the same."""
    logps, anchor, signs, mask = walk(0, 0.1, 6)
    logps = logps - 0.5
    line = profile_line(profile_of([(0, (logps, anchor, signs, mask))], Processes()), preset("ctpo"))
    assert line["gradient_removed_weighted"][-1] is not None
    assert (line["gradient_removed"][-1], line["gradient_removed_harm"][-1]) == (0.5, 1.0)
    assert line["gradient_removed_gain"][-1] == 0.0
    assert line["harm_clipped"][-1] == line["count"][-1] - line["gain_count"][-1]


def gradients_of(parts: list[torch.Tensor], rows: list[int]) -> torch.Tensor:
    """The figures of an update whose micro-batches add these gradients."""
    weight = torch.nn.Parameter(torch.zeros_like(parts[0]))
    model = SimpleNamespace(parameters=lambda: [weight])
    trainer: Any = SimpleNamespace(
        model=model, accelerator=Processes(), is_fsdp_enabled=False, is_deepspeed_enabled=False
    )
    gradients = UpdateGradients(trainer)
    for part, count in zip(parts, rows, strict=True):
        gradients.starting(count)
        weight.grad = part if weight.grad is None else weight.grad + part
    assert weight.grad is not None
    gradients.updated(weight.grad.norm(), 7)
    return gradients.close(Processes())[7]


def test_two_micro_batches_give_the_simple_estimator() -> None:
    """Equations A.2 of arXiv 1812.06162 with means over responses: batches of b and of B of them."""
    g = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 50, generator=g, dtype=torch.float64)
    norm, mean, noise = gradients_of([first, second], [3, 3]).tolist()
    small, large = float((first / 3).square().sum()), float(((first + second) / 6).square().sum())
    assert norm == pytest.approx(float((first + second).norm()))
    assert mean / 36 == pytest.approx((6 * large - 3 * small) / (6 - 3))
    assert noise / 6 == pytest.approx((small - large) / (1 / 3 - 1 / 6))


def test_the_noise_of_gradients_is_found_on_average() -> None:
    """Responses with a known mean and variance, in micro-batches of several sizes. One alone says nothing."""
    g, rows, size = torch.Generator().manual_seed(3), [2, 4, 1, 3], 200
    mean = torch.full((size,), 0.05, dtype=torch.float64)
    found = []
    for _ in range(300):
        draws = [
            (mean + 0.1 * torch.randn(count, size, generator=g, dtype=torch.float64)).sum(0) for count in rows
        ]
        found.append(gradients_of(draws, rows))
    _, squared, noise = torch.stack(found).mean(dim=0).tolist()
    assert squared == pytest.approx(100 * size * 0.05**2, rel=0.05)
    assert noise == pytest.approx(10 * size * 0.1**2, rel=0.05)
    assert gradients_of([mean], [8])[1:].isnan().all()


def test_in_training_each_update_has_its_gradient(fit: Callable[..., Any]) -> None:
    """With two micro-batches per update. The noise is that of gradients which are kept apart here."""
    seen: list[float] = []
    halves: list[list[torch.Tensor]] = []

    class Heard(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            halves.append([])

        def on_substep_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            halves[-1].append(torch.cat([p.grad.reshape(-1).double() for p in model.parameters()]))

    class Watched(CTPOTrainer):
        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            seen.append(float(grad_norm))
            return super()._get_grad_norm(model, grad_norm)

    settings = {
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "logging_steps": 1,
    }
    trainer = fit(Watched, CTPOConfig, callbacks=[Heard()], records=True, **settings)
    run = RunDirectory(Path(trainer.args.output_dir))
    (line,) = [json.loads(each) for each in run.profile.read_text().splitlines()]
    assert line["updates"]["update"] == [1, 2]
    assert line["updates"]["gradient_norm"] == pytest.approx(seen, rel=1e-5)
    for place, (half,) in enumerate(halves):
        first, whole = float(half.square().sum()), seen[place] ** 2
        noise = line["updates"]["gradient_noise_squared"][place]
        assert noise == pytest.approx(4 * first - whole, rel=1e-4, abs=1e-6 * whole)
        assert line["updates"]["gradient_mean_squared"][place] == pytest.approx(
            2 * whole - 4 * first, rel=1e-4
        )
    record = run.records()[-1]
    assert record["gradient_norm_mean"] == pytest.approx(sum(seen) / 2, rel=1e-5)
    assert record["gradient_norm_max"] == pytest.approx(max(seen), rel=1e-5)


def test_the_recorded_band_falls_with_its_centre() -> None:
    """What the report draws as the limits are those that the objective itself applies."""
    from ctpo.objectives import preset
    from ctpo.training.diagnostics.record import _band

    settings = {"scale": 0.1, "power": 0.5, "share": 0.1, "centre": 0.02}
    still, falling = (
        _band(preset("ctpo-calibrated", **settings, log_drift=drift), [1.0, 16.0, None])
        for drift in (0.0, 0.01)
    )
    assert still is not None
    assert falling is not None
    for name in ("low", "high"):
        assert falling[name][:2] == pytest.approx([still[name][0] - 0.01, still[name][1] - 0.16])
        assert falling[name][2] is None


@pytest.mark.parametrize(
    ("name", "knobs"),
    [*((name, {}) for name in preset_names()), ("ctpo-decay", {"surrogate": "stop-gradient"})],
)
def test_every_limit_that_is_recorded_clips_tokens(name: str, knobs: dict[str, Any]) -> None:
    """A bound that plays no part in the loss is not drawn: here each one that is meets ratios beyond it."""
    from ctpo.training.diagnostics.record import _band

    g = torch.Generator().manual_seed(0)
    logps, old = -6 * torch.rand(2, 64, 4, generator=g, dtype=torch.float64)
    advantages = torch.randn(64, generator=g, dtype=torch.float64)
    mask = torch.ones(64, 4, dtype=torch.bool)
    objective = preset(name, **knobs)
    turns = {"turn_ids": torch.zeros_like(mask, dtype=torch.int64)} if objective.needs_turns else {}
    stats = objective(logps, old, advantages, mask, **turns).stats
    for side, limits in (_band(objective, [1.0, 4.0]) or {}).items():
        assert limits is None or stats[f"clip_fraction_{side}"] > 0, side
