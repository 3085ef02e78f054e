"""The product that forgets: its two ends, its recurrence on every layout, long rows, and weights without a pull."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctpo.objectives import Objective, preset
from ctpo.objectives.layouts import recurrence
from ctpo.objectives.layouts.packed import Packed
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.ratios import DecayedRatio, TokenRatio
from ctpo.objectives.surrogates import MinClip, StopGradientWeight
from ctpo.objectives.trust_regions import LogBand

from .batches import make, run, same

DECAYS = (1e-320, 1e-30, 0.3, 0.9, 0.98, 0.9999)
BANDS = {"log_low": 0.2, "log_high": 0.3, "log_dual": 0.4, "power": 0.5}


def loop(values: list[float], steps: list[bool], decay: float) -> list[float]:
    """x_t = decay^m · x_{t−1} + v_t, one after the other."""
    x, out = 0.0, []
    for v, m in zip(values, steps, strict=True):
        x = (decay * x if m else x) + v
        out.append(x)
    return out


def row(length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    steps = torch.rand(length, generator=g) < 0.8
    return torch.where(steps, 20 * torch.randn(length, generator=g, dtype=torch.float64), 0.0), steps


@pytest.mark.parametrize("surrogate", ["min-clip", "stop-gradient"])
@pytest.mark.parametrize("backend", ["native", "compose"])
def test_decay_1_is_ctpo_and_decay_0_the_token_ratio(backend: str, surrogate: str) -> None:
    batch = make(drift=0.4, seed=1)
    kind = {"min-clip": MinClip(), "stop-gradient": StopGradientWeight()}[surrogate]
    whole = Objective(
        ratio=preset("ctpo").ratio, trust_region=LogBand(**BANDS), surrogate=kind, backend=backend
    )
    token = Objective(ratio=TokenRatio(), trust_region=LogBand(**BANDS), surrogate=kind, backend=backend)
    for decay, other in ((1.0, whole), (1, whole), (0.0, token), (0, token)):
        ours = preset("ctpo-decay", decay=decay, surrogate=surrogate, backend=backend, **BANDS)
        (out, grad), (expected, wanted) = run(ours, batch), run(other, batch)
        same(out, expected, rtol=0)
        assert torch.equal(grad, wanted)
    if surrogate == "min-clip":
        (out, grad), (expected, wanted) = (
            run(preset("ctpo-decay", decay=1.0), batch),
            run(preset("ctpo"), batch),
        )
        same(out, expected, rtol=0)
        assert torch.equal(grad, wanted)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_long_row_is_the_recurrence(decay: float) -> None:
    values, steps = row(3000)
    expected = torch.tensor(loop(values.tolist(), steps.tolist(), decay), dtype=torch.float64)
    got = Padded().decayed_sum(values[None], steps[None], decay)[0]
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


def test_many_blocks_join_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values, steps = row(1000)
    whole = recurrence.decayed_sum(values, steps, 0.9)
    monkeypatch.setattr(recurrence, "_GROWTH", {torch.float64: 0.5})  # blocks of five tokens
    torch.testing.assert_close(recurrence.decayed_sum(values, steps, 0.9), whole, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("decay", DECAYS)
def test_packed_segments_begin_anew(decay: float) -> None:
    lengths = (700, 1, 0, 300, 2)
    rows = [row(length, seed) for seed, length in enumerate(lengths)]
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    got = Packed(ids).decayed_sum(torch.cat([v for v, _ in rows]), torch.cat([m for _, m in rows]), decay)
    expected = [x for v, m in rows for x in loop(v.tolist(), m.tolist(), decay)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["native", "compose"])
def test_what_the_model_did_not_sample_leaves_the_product_as_it_is(backend: str) -> None:
    batch = make(rows=3, length=20, drift=0.4)
    mask = torch.ones_like(batch.mask)
    mask[:, 7:13] = False
    objective = preset("ctpo-decay", decay=0.5, backend=backend, reduction="sum", **BANDS)
    logps = batch.logps.clone().requires_grad_()
    with_tools = objective(logps, batch.old, batch.advantages, mask)
    (grad,) = torch.autograd.grad(with_tools.loss, logps)
    short = [torch.cat([x[:, :7], x[:, 13:]], dim=1) for x in (batch.logps, batch.old)]
    logps = short[0].requires_grad_()
    without = objective(logps, short[1], batch.advantages, torch.ones(3, 14, dtype=torch.bool))
    (expected,) = torch.autograd.grad(without.loss, logps)
    torch.testing.assert_close(torch.cat([grad[:, :7], grad[:, 13:]], dim=1), expected, rtol=1e-13, atol=0)
    assert not grad[:, 7:13].any()


@pytest.mark.parametrize("backend", ["native", "compose"])
def test_float32_rows_of_8192_keep_their_digits(backend: str) -> None:
    batch = make(rows=4, length=8192, drift=0.05, seed=3)
    exact, _ = run(preset("ctpo-decay", surrogate="stop-gradient"), batch)
    rounded, _ = run(
        preset("ctpo-decay", surrogate="stop-gradient", backend=backend), batch.to(torch.float32)
    )
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=1e-4)
    assert rounded.stats["log_ratio_std"].item() == pytest.approx(
        exact.stats["log_ratio_std"].item(), rel=1e-5
    )


def test_stop_gradient_weights_keep_every_token() -> None:
    """−sg(clip(ρ)) A log π against a loop, with the bounds that cispo has."""
    batch = make(drift=0.6, seed=2)
    knobs = {"log_low": math.inf, "log_high": math.log(5), "power": 0.0, "reduction": "sum"}
    for decay in (0.0, 0.9, 1.0):
        objective = preset("ctpo-decay", decay=decay, surrogate="stop-gradient", **knobs)
        out, grad = run(objective, batch)
        for i, mask in enumerate(batch.mask):
            places = mask.nonzero().flatten().tolist()
            d = (batch.logps - batch.old)[i, places].tolist()
            c = loop(d, [True] * len(d), decay)
            for t, x in zip(places, c, strict=True):
                weight = math.exp(min(x, math.log(5)))
                assert grad[i, t].item() == pytest.approx(-weight * batch.advantages[i].item(), rel=1e-12)
        assert out.stats["clip_fraction_dual"] == 0
    cispo, _ = run(preset("cispo", reduction="sum"), batch)
    same(run(preset("ctpo-decay", decay=0, surrogate="stop-gradient", **knobs), batch)[0], cispo, rtol=1e-14)


def test_decays_out_of_range_are_refused() -> None:
    for decay, words in (
        (1.5, "must be <= 1"),
        (-0.1, "must be >= 0"),
        (math.nan, "is not a number"),
        (True, "is not"),
    ):
        with pytest.raises(ValueError, match=f"decay: .* {words}"):
            DecayedRatio(decay)
    with pytest.raises(ValueError, match="surrogate: 'clip' is not known"):
        preset("ctpo-decay", surrogate="clip")
