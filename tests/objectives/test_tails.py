"""A band from counted tails, against loops over the tokens and the real objective's clips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctpo.objectives import calibrate, preset
from ctpo.objectives.calibration import Tails, band_bases

LENGTH, WIDTH = 128, 0.05
EDGES = torch.cat([-(2.0 ** (torch.arange(48, -25, -1) / 6)), 2.0 ** (torch.arange(-24, 49) / 6)]) / 16


def skewed_batch(rows: int, seed: int) -> tuple[Tensor, ...]:
    """Rows that have drifted little or much (as in early and late updates), the way their advantage points."""
    g = torch.Generator().manual_seed(seed)
    advantages = torch.randn(rows, generator=g, dtype=torch.float64) + 0.7
    reach = 3 * torch.rand(rows, 1, generator=g, dtype=torch.float64).square()
    root = torch.arange(LENGTH + 1, dtype=torch.float64).sqrt()
    along = 2 * advantages.sign()[:, None] * root.diff()
    steps = torch.randn(rows, LENGTH, generator=g, dtype=torch.float64)
    logps = torch.full((rows, LENGTH), -2.0, dtype=torch.float64)
    d = WIDTH * reach * (steps + along)
    return logps, logps - d, advantages, torch.ones(rows, LENGTH, dtype=torch.bool)


def profile_of(batch: tuple[Tensor, ...], bins: int = 16) -> dict[str, Tensor]:
    logps, old, advantages, _ = batch
    c = (logps - old).cumsum(1).reshape(len(logps), bins, -1).transpose(0, 1).reshape(bins, -1)
    gain = (
        (advantages > 0)[:, None]
        .expand_as(logps)
        .reshape(len(logps), bins, -1)
        .transpose(0, 1)
        .reshape(bins, -1)
    )
    cells = torch.bucketize(c, EDGES.double())

    def count(side: Tensor) -> Tensor:
        return torch.stack(
            [
                torch.bincount(row[kept], minlength=len(EDGES) + 1)
                for row, kept in zip(cells, side, strict=True)
            ]
        )

    edge = torch.arange(1, bins + 1) * (LENGTH // bins)
    return {
        "edge": edge,
        "count": torch.full((bins,), c.shape[1]),
        "position_mean": edge - (LENGTH // bins - 1) / 2,
        "log_ratio_mean": c.mean(1),
        "log_ratio_std": c.std(1),
        "cell_edge": EDGES,
        "gain": count(gain),
        "harm": count(~gain),
    }


def clipped_by_the_objective(batch: tuple[Tensor, ...], knobs: dict[str, float], bins: int = 16) -> Tensor:
    details = preset("ctpo-calibrated", **knobs)(*batch, details=True).details
    assert details is not None
    return (details.clip.abs() == 1).double().reshape(len(batch[0]), bins, -1).mean(dim=(0, 2))


def walk(seed: int, fall: float = 0.02, rows: int = 2000) -> tuple[Tensor, ...]:
    """Independent steps with a mean of −fall; advantages of both signs that have nothing to do with them."""
    g = torch.Generator().manual_seed(seed)
    d = WIDTH * torch.randn(rows, LENGTH, generator=g, dtype=torch.float64) - fall
    logps = torch.full_like(d, -2.0)
    advantages = torch.randn(rows, generator=g, dtype=torch.float64)
    return logps, logps - d, advantages, torch.ones_like(d, dtype=torch.bool)


def test_a_centre_that_follows_the_mean_clips_evenly() -> None:
    """Steps with a mean of −κ: √t about 0 clips late tokens below, and √t about −κt the share everywhere."""

    profile = profile_of(walk(0))
    followed, fixed = (calibrate(profile, 0.1, 0.5, drift=drift) for drift in (True, False))
    assert followed.drift == pytest.approx(0.02, rel=0.02)
    assert "log_drift" not in fixed.knobs
    even, uneven = (clipped_by_the_objective(walk(1), fit.knobs) for fit in (followed, fixed))
    assert (even - 0.1).abs().max() < 0.025
    assert (uneven - 0.1).abs().max() > 0.05
    torch.testing.assert_close(torch.tensor(followed.clip_fraction), even.float(), rtol=0, atol=0.02)
    # Without tails the band is that of a normal law about the same centre.
    normal = calibrate({k: v for k, v in profile.items() if k != "gain"}, 0.1, 0.5, drift=True)
    assert (normal.drift, normal.centre) == (followed.drift, pytest.approx(0.0, abs=0.01))
    assert normal.low == pytest.approx(1.2816 * WIDTH, rel=0.06)


def test_the_bounds_fall_by_the_drift() -> None:
    """As if the log ratios were higher by the drift, in a band that does not move."""
    logps, old, advantages, mask = walk(3, rows=40)
    mask[:, 5:9] = False
    moved = preset("ctpo-calibrated", scale=0.03, log_drift=0.02)(logps, old, advantages, mask)
    still = preset("ctpo-calibrated", scale=0.03)(logps, old - 0.02 * mask.double(), advantages, mask)
    for name in ("clip_fraction_high", "clip_fraction_low", "clip_fraction_dual"):
        assert moved.stats[name] == still.stats[name] > 0
    expected = still.token_loss * (-0.02 * mask.double().cumsum(1)).exp()
    torch.testing.assert_close(moved.token_loss, expected, rtol=1e-9, atol=1e-12)


def test_counts_above_and_below_a_band() -> None:
    """Whole cells exactly, by a loop; inside of a cell in proportion."""
    edges = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    gain, harm = torch.tensor([[5, 0, 3, 7, 11, 13]]), torch.tensor([[1, 2, 4, 8, 16, 32]])
    tails = Tails.of({"cell_edge": edges, "gain": gain, "harm": harm, "position_mean": torch.tensor([1.0])})
    assert tails is not None

    def counts(low: float, high: float) -> list[float]:
        return [float(part) for part in tails.clipped(low, high, 0.0)]

    assert counts(1.0, 1.0) == [3, 24]
    assert counts(0.0, 0.0) == [7, 31]
    assert counts(1.5, 1.25) == [2, pytest.approx(13 + 11 * 0.75)]
    assert counts(9.0, 9.0) == [1, 13]  # what lies beyond the last edge may lie anywhere


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_drift_far_from_normal_is_clipped_by_the_share_at_every_position(share: float) -> None:
    """Calibrated on one batch, counted by the real objective on another; a normal law of the same moments is off."""
    found = calibrate(profile_of(skewed_batch(3000, 0)), share)
    other = skewed_batch(3000, 1)
    counted = clipped_by_the_objective(other, found.knobs)
    assert counted.mean().item() == pytest.approx(share, rel=0.05)
    assert (counted - share).abs().max().item() < 0.35 * share
    assert counted.tolist() == pytest.approx(found.clip_fraction, abs=0.35 * share)
    normal = {key: value for key, value in profile_of(skewed_batch(3000, 0)).items() if key != "gain"}
    assert (
        abs(clipped_by_the_objective(other, calibrate(normal, share).knobs).mean().item() / share - 1) > 0.3
    )


def test_each_sign_is_clipped_by_the_share() -> None:
    profile = profile_of(skewed_batch(2000, 0))
    found, tails = calibrate(profile, 0.1), Tails.of(profile)
    assert tails is not None
    below, above = tails.clipped(found.low, found.high, found.power)
    assert float(below.sum() / tails.harm.sum()) == pytest.approx(0.1, abs=1e-6)
    assert float(above.sum() / tails.gain.sum()) == pytest.approx(0.1, abs=1e-6)
    knobs = found.knobs
    assert band_bases(knobs["scale"], 0.1, knobs["centre"]) == pytest.approx((found.low, found.high))


def test_a_side_on_which_nothing_drifts_is_bounded_at_ratio_one() -> None:
    profile = profile_of(skewed_batch(200, 0))
    profile["gain"] = torch.zeros_like(profile["gain"])
    profile["gain"][:, 3] = 10  # all of them became less likely
    assert calibrate(profile).high == 0.0
    profile["harm"] = profile["gain"].flip(1)
    with pytest.raises(
        ValueError, match=r"fewer than a share of 0\.1 of the tokens moved the way of their advantage"
    ):
        calibrate(profile)


def test_a_bin_without_tokens_changes_nothing() -> None:
    edges = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    counts = torch.tensor([[5, 0, 3, 7, 11, 0], [0, 0, 0, 0, 0, 0]])
    whole = {
        "cell_edge": edges,
        "gain": counts,
        "harm": counts.flip(1),
        "position_mean": torch.tensor([4.0, 0.0]),
    }
    full = {key: value if key == "cell_edge" else value[:1] for key, value in whole.items()}
    tails, alone = Tails.of(whole), Tails.of(full)
    assert tails is not None
    assert alone is not None
    assert tails.bases(0.5, 0.1) == pytest.approx(alone.bases(0.5, 0.1))
    assert tails.clip_fraction(0.1, 0.1, 0.5).tolist() == [alone.clip_fraction(0.1, 0.1, 0.5).item(), 0.0]
