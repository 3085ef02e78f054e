"""Bounds of the few stretches that may reach one, in the streaming pass; the same as everywhere in the composition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctpo.objectives import Objective, near_bounds, piece_terms, pieces, preset, stream
from ctpo.objectives.near_bounds import Near, Survey
from ctpo.objectives.ratios import CumulativeRatio, PrefixMeanRatio
from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight
from ctpo.objectives.trust_regions import LogBand

from .batches import Batch, make, run, same
from .test_fused import FUSED, pair

LENGTH = 203  # rows are padded to 26 stretches of 8


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Near | None]:
    """Surveys small pieces by short stretches, and shows what they find."""
    found: list[Near | None] = []
    near = Survey.near

    def recorded(self: Survey, *args: Any) -> Near | None:
        found.append(near(self, *args))
        return found[-1]

    monkeypatch.setattr(Survey, "near", recorded)
    monkeypatch.setattr(piece_terms, "FEWEST", 1)
    monkeypatch.setattr(pieces, "STRETCH", 8)
    return found


def jumping(jump: float, drift: float = 1e-3, **kinds: Any) -> Batch:
    """Rows that drift little, and jump up or down late, so that few stretches are near a bound."""
    batch = make(length=LENGTH, drift=drift, **kinds)
    for row, column, sign in ((0, 180, 1), (0, 199, -1), (1, 190, -1), (5, 171, 1), (6, 195, -1)):
        batch.old[row, column] = batch.logps[row, column] - sign * jump
        batch.mask[row, column] = True
    batch.mask[6, :9] = False
    return batch


def gradients(objective: Objective, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
    """Of the loss and of token losses at once."""
    logps = batch.logps.clone().requires_grad_()
    out = objective(logps, batch.old, batch.advantages, batch.mask)
    return torch.autograd.grad(out.loss + (out.token_loss * weights).sum(), logps)[0]


@pytest.mark.parametrize("block", [1 << 17, 3 * LENGTH, 70], ids=["one-block", "three-rows", "columns"])
@pytest.mark.parametrize("name", FUSED)
def test_equals_composition(
    name: str, block: int, seen: list[Near | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK", block)
    fast, definition = pair(name)
    weights = torch.linspace(-1, 2, LENGTH, dtype=torch.float64)
    for seed, jump in enumerate((0.0, 1.0, 15.0)):
        for flipped in (1.0, -1.0):
            batch = jumping(jump, seed=seed)
            batch.advantages *= flipped
            (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
            same(out, expected, 1e-11)
            torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)
            both = [gradients(objective, batch, weights) for objective in (fast, definition)]
            torch.testing.assert_close(*both, rtol=1e-11, atol=1e-16)
            alone = fast(batch.logps, batch.old, batch.advantages, batch.mask)  # without a gradient's place
            assert torch.equal(alone.token_loss, out.token_loss)
    if not isinstance(fast.ratio, PrefixMeanRatio):
        assert any(near is not None and len(near.index) == 0 for near in seen)


@pytest.mark.parametrize("name", ["ctpo", "grpo", "cispo"])
def test_it_takes_few_stretches(name: str, seen: list[Near | None]) -> None:
    batch = jumping(3.0)
    out, _ = run(preset(name), batch)
    assert out.stats["clip_fraction"] > 0
    (near,) = seen
    assert near is not None
    assert 0 < len(near.index) < 26
    assert set(near.rows.tolist()) <= {0, 1, 5, 6}


def test_where_many_are_near_all_are_taken(seen: list[Near | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other piece is looked over."""
    monkeypatch.setattr(stream, "BLOCK", 70)
    fast, definition = pair("ctpo")
    batch = make(length=LENGTH, drift=2.0)
    same(run(fast, batch)[0], run(definition, batch)[0], 1e-11)
    assert seen == [None]


@pytest.mark.parametrize("name", FUSED)
def test_float32_takes_the_same_decisions(name: str, seen: list[Near | None]) -> None:
    fast, definition = pair(name)
    for drift in (0.003, 0.01, 0.02):
        batch = make(length=LENGTH, drift=drift, seed=1).to(torch.float32)
        (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
        for part in ("clip_fraction_high", "clip_fraction_low", "clip_fraction_dual"):
            assert out.stats[part].item() == expected.stats[part].item()
        same(out, expected, 1e-5, 2e-6)
        torch.testing.assert_close(grad, expected_grad, rtol=2e-5, atol=1e-9)


def test_a_neutralised_token(seen: list[Near | None]) -> None:
    fast, definition = pair("ctpo")
    batch = jumping(1.0)
    batch.old[0, 50] = float("-inf")
    batch.mask[0, 50] = True
    same(run(fast, batch)[0], run(definition, batch)[0], 1e-11)
    assert not seen


def compare(batch: Batch, **parts: Any) -> torch.Tensor:
    """Both ways of a composition; its clip fraction."""
    (out, grad), (expected, expected_grad) = (
        run(Objective(backend=backend, **parts), batch) for backend in ("auto", "compose")
    )
    same(out, expected, 1e-11)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)
    return expected.stats["clip_fraction"]


@pytest.mark.parametrize("low", [0.0, 0.02])
@pytest.mark.parametrize("power", [-0.5, 0.3])
def test_bounds_that_shrink_and_that_grow(power: float, low: float, seen: list[Near | None]) -> None:
    """One that shrinks is infinite before a row's first token."""
    batch = jumping(0.3, 2e-3)
    batch.mask[0, 10:] = False
    region = LogBand(low, 0.03, dual=0.04, power=power)
    assert compare(batch, ratio=CumulativeRatio(), surrogate=MinClip(), trust_region=region) > 0
    assert bool(seen) == (power > 0)


def test_a_mean_brings_its_positions(seen: list[Near | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 70)
    region = LogBand(0.001, 0.001, power=0.5)
    parts = {"ratio": PrefixMeanRatio(), "surrogate": MinClip(), "trust_region": region}
    assert compare(jumping(1.0), **parts) > 0
    assert not seen


def test_advantages_of_tokens_are_not_surveyed(seen: list[Near | None]) -> None:
    fast, definition = pair("ctpo")
    batch = jumping(1.0, per_token=True)
    same(run(fast, batch)[0], run(definition, batch)[0], 1e-11)
    assert not seen


@pytest.mark.parametrize("jump", [12.0, -12.0])
def test_far_weights_without_an_upper_bound_are_truncated(jump: float, seen: list[Near | None]) -> None:
    batch = jumping(1e-3)
    batch.advantages = batch.advantages.abs().neg()
    batch.old[1, 190] = batch.logps[1, 190] - jump
    region = LogBand(20.0, 0.03, power=0.0)
    compare(batch, ratio=CumulativeRatio(), surrogate=MinClip(), trust_region=region)
    assert [len(near.index) for near in seen if near] == [3 if jump > 0 else 0]


def test_bounds_of_a_weight_are_of_all_rows_and_a_linear_surrogate_has_none(seen: list[Near | None]) -> None:
    region = LogBand(0.02, 0.03, dual=5.0, power=0.5)
    parts = {"ratio": CumulativeRatio(), "trust_region": region}
    assert compare(jumping(1.0), surrogate=StopGradientWeight(), **parts) > 0
    assert seen[-1] is not None
    compare(jumping(1.0), surrogate=Linear(), **parts)
    assert seen[-1] is not None
    assert len(seen[-1].index) == 0


@pytest.mark.parametrize("drift", [1e-3, -1e-3])
def test_extremes_are_of_tokens(drift: float, seen: list[Near | None]) -> None:
    """Not the zeros that stand for the others."""
    logps = torch.full((2, LENGTH), drift, dtype=torch.float64)
    mask = (torch.arange(LENGTH) % 5 > 1).expand(2, -1)
    batch = Batch(logps, torch.zeros_like(logps), torch.tensor([1.0, -0.5]).double(), mask)
    fast, definition = pair("ctpo")
    same(run(fast, batch)[0], run(definition, batch)[0], 1e-11)
    assert seen[0] is not None


def test_small_pieces_are_not_surveyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Survey, "near", None)
    run(preset("ctpo"), make(rows=8, length=near_bounds.FEWEST // 8 - 1))
