"""The calibrated band: the fit against numpy's, the band against what the real objective then clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ctpo.objectives import calibrate, position_profile, preset
from ctpo.objectives.calibration import band_bases

WIDTH, LENGTH, BINS = 0.05, 256, 16


def drifting_batch(rows: int, seed: int, persistent: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows whose log ratios are independent steps, or one step repeated."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randn(rows, 1 if persistent else LENGTH, generator=g, dtype=torch.float64)
    d = (WIDTH * steps).expand(rows, LENGTH)
    logps = torch.full((rows, LENGTH), -2.0, dtype=torch.float64)
    advantages = (
        torch.randn(rows, generator=g, dtype=torch.float64) + 0.5
    )  # more of one sign than of the other
    return logps, logps - d, advantages, torch.ones(rows, LENGTH, dtype=torch.bool)


def profile_of(batch: tuple[Tensor, ...], bins: int = BINS, **knobs: object) -> dict[str, Tensor]:
    name = "ctpo-calibrated" if knobs else "ctpo"
    details = preset(name, **knobs)(*batch, details=True).details
    assert details is not None
    return position_profile(details, LENGTH, bins)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_real_objective_then_clips_the_share_everywhere(share: float) -> None:
    """Calibrated on one batch, counted by the objective on another."""
    found = calibrate(profile_of(drifting_batch(2000, 0)), share)
    assert found.power == pytest.approx(0.5, abs=0.03)
    assert found.scale == pytest.approx(WIDTH, rel=0.15)
    knobs = {"scale": found.scale, "power": found.power, "centre": found.centre, "share": share}
    clipped = profile_of(drifting_batch(4000, 1), **knobs)["clip_fraction"]
    assert (clipped - share).abs().max().item() < 0.25 * share
    assert found.clip_fraction == pytest.approx([share] * BINS, abs=0.25 * share)
    # A band half as wide as the spread asks for clips more, and by the same arithmetic.
    tight = profile_of(drifting_batch(4000, 1), **{**knobs, "scale": found.scale / 2})["clip_fraction"]
    assert tight.min().item() > 1.3 * share


def test_a_persistent_drift_has_exponent_one() -> None:
    found = calibrate(profile_of(drifting_batch(500, 2, persistent=True), bins=LENGTH))
    assert found.power > 0.9  # the weight's ceiling of e^10 shortens its tail late
    assert calibrate(profile_of(drifting_batch(500, 2, persistent=True)), power=0.5).power == 0.5


def made_up(std: Tensor, count: Tensor, mean: Tensor | None = None) -> dict[str, Tensor]:
    """A profile with one position a bin."""
    return {
        "edge": torch.arange(1, len(std) + 1).float(),
        "count": count,
        "log_ratio_mean": torch.zeros_like(std) if mean is None else mean,
        "log_ratio_std": std,
    }


def test_an_exact_power_law_is_found() -> None:
    t = torch.arange(1, 13, dtype=torch.float64)
    found = calibrate(made_up(0.3 * t**0.7, 100 + t, mean=-0.1 * t**0.7), share=0.1)
    assert found.scale == pytest.approx(0.3, rel=1e-12)
    assert found.power == pytest.approx(0.7, rel=1e-12)
    assert found.centre == pytest.approx(-0.1, rel=1e-9)
    assert (found.low, found.high) == pytest.approx(
        (0.3 * 1.2815515655446 + 0.1, 0.3 * 1.2815515655446 - 0.1)
    )
    assert found.clip_fraction == pytest.approx([0.1] * 12, rel=1e-9)
    assert found.positions == tuple(range(1, 13))


@pytest.mark.parametrize("noise", [1e-4, 0.5])
def test_standard_errors_equal_weighted_least_squares(noise: float) -> None:
    """numpy's polyfit, its covariance scaled by the residuals where they exceed their expectation."""
    g = torch.Generator().manual_seed(0)
    t = torch.arange(1, 9, dtype=torch.float64)
    count = torch.randint(10, 1000, (8,), generator=g).double()
    std = 0.2 * t**0.6 * (noise * torch.randn(8, generator=g, dtype=torch.float64)).exp()
    x, y, w = np.log(t.numpy()), np.log(std.numpy()), np.sqrt(2 * (count.numpy() - 1))
    line, covariance = np.polyfit(x, y, 1, w=w, cov="unscaled")
    residual = ((w * (y - np.polyval(line, x))) ** 2).sum() / 6
    errors = np.sqrt(np.diag(covariance) * max(1.0, residual))
    assert (residual > 1) == (noise > 0.1)
    found = calibrate(made_up(std, count))
    assert found.power == pytest.approx(line[0], rel=1e-9)
    assert np.log(found.scale) == pytest.approx(line[1], rel=1e-9)
    assert found.power_stderr == pytest.approx(errors[0], rel=1e-9)
    assert found.scale_stderr == pytest.approx(found.scale * errors[1], rel=1e-9)


def test_standard_error_covers_independent_tokens() -> None:
    """The exponent's error over 200 repetitions is what the standard error says, for independent normal values."""
    g = torch.Generator().manual_seed(5)
    t = torch.arange(1, 11, dtype=torch.float64)
    pulls = []
    for _ in range(200):
        values = 0.2 * t.sqrt() * torch.randn(50, 10, generator=g, dtype=torch.float64)
        found = calibrate(made_up(values.std(0), torch.full_like(t, 50)))
        pulls.append((found.power - 0.5) / found.power_stderr)
    assert 0.75 < np.std(pulls) < 1.15


def test_positions_of_uneven_bins() -> None:
    """Mean positions from the objective's own count of positions, where bins do not divide the length."""
    details = preset("ctpo")(*drifting_batch(4, 0), details=True).details
    assert details is not None
    for length, bins in ((256, 7), (250, 16), (256, 300), (256, 100)):
        profile = position_profile(details, length, bins)
        index = ((torch.arange(length).double()) * bins / length).long()
        expected = [
            (torch.arange(1, length + 1)[index == i]).double().mean().item()
            for i in range(bins)
            if (index == i).any()
        ]
        assert calibrate(profile).positions == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((0.0, 0.1), "scale: 0.0"),
        ((float("inf"), 0.1), "scale: inf"),
        ((0.3, 0.5), "share: 0.5"),
        ((0.3, 0.0), "share: 0.0"),
        ((0.3, 0.1, np.inf), "centre: inf"),
    ],
)
def test_bad_values(arguments: tuple[float, ...], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        band_bases(*arguments)


def test_nothing_to_fit() -> None:
    """On-policy, before anything moved, there is no spread."""
    zeros = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(ValueError, match="0 bins hold a spread; the fit needs 2"):
        calibrate(made_up(zeros, zeros + 9))
    one = made_up(zeros + torch.tensor([0.3, 0, 0, 0]), zeros + 9)
    with pytest.raises(ValueError, match="1 bins hold a spread"):
        calibrate(one)
    assert calibrate(one, power=0.5).scale == pytest.approx(0.3, rel=1e-6)
    assert band_bases(0.1, 0.1, -1.0)[1] == 0.0


def test_bins_stand_where_their_tokens_are() -> None:
    """Wide bins whose tokens lie at their near ends, spread as a random walk."""
    positions = torch.tensor([1.0, 4.0, 36.0], dtype=torch.float64)
    profile = {
        "edge": torch.tensor([3.0, 30.0, 300.0]),
        "count": torch.full((3,), 100.0),
        "log_ratio_mean": torch.zeros(3),
        "log_ratio_std": 0.3 * positions.sqrt(),
        "position_mean": positions,
    }
    found = calibrate(profile)
    assert (found.power, found.scale) == (pytest.approx(0.5), pytest.approx(0.3))
