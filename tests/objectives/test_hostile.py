"""Inputs trainers really hand over: holes, infinities, half precision, empty and endless rows."""

from __future__ import annotations

import math
import shutil
import warnings
from typing import Any

import pytest
import torch

from ctpo.objectives import checks, preset, preset_names
from ctpo.objectives.numerics import SATURATION

from .batches import Batch, make, run

NAN, INF = float("nan"), float("inf")
BACKENDS = pytest.mark.parametrize("backend", ["auto", "compose"])
ALL = pytest.mark.parametrize("name", preset_names())


@BACKENDS
@ALL
def test_masked_values_change_nothing(name: str, backend: str) -> None:
    objective, clean = preset(name, backend=backend), make(drift=0.3)
    expected, expected_grad = run(objective, clean)
    for bad in (NAN, INF, -INF, -9999.0, 1e30):
        batch = make(drift=0.3)
        batch.logps[~batch.mask] = bad
        batch.old[~batch.mask] = -bad
        batch.advantages[2] = NAN  # a row without tokens
        out, grad = run(objective, batch)
        assert torch.equal(out.loss, expected.loss)
        assert torch.equal(grad, expected_grad)
        assert torch.equal(out.token_loss, expected.token_loss)
        assert out.stats["neutralised"] == 0


@BACKENDS
@ALL
def test_masked_advantages_change_nothing(name: str, backend: str) -> None:
    """Per-token advantages may hold anything outside the mask, and where the log-probs are unusable."""
    objective, batches = preset(name, backend=backend), []
    for fill in (0.0, NAN):
        batch = make(drift=0.3, per_token=True)
        token = int(batch.mask[0].nonzero()[2])
        batch.old[0, token] = INF
        batch.advantages[0, token] = fill
        batch.advantages[~batch.mask] = fill
        batches.append(run(objective, batch))
    (out, grad), (expected, expected_grad) = batches
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("backend", [*BACKENDS.args[1], "native"])
def test_a_log_ratio_at_the_limit_is_still_usable(backend: str) -> None:
    if backend == "native" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("needs a C compiler")
    logps = torch.tensor([[0.0, -SATURATION, 0.0, -SATURATION - 1e-12]], dtype=torch.float64)
    old = torch.tensor([[-SATURATION, 0.0, -SATURATION - 1e-12, 0.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    out = preset("ctpo", backend=backend)(logps, old, torch.ones(1).double(), mask)
    assert out.stats["saturated"] == out.stats["neutralised"] == 2


@BACKENDS
@ALL
@pytest.mark.parametrize("bad", [NAN, INF, -INF, -9999.0, 25.0])
def test_an_unusable_token_is_neutralised_and_its_row_lives(name: str, backend: str, bad: float) -> None:
    """It has ratio 1 in every product and no loss; the others are as if its log-probs had agreed exactly."""
    batch, twin = make(drift=0.02), make(drift=0.02)
    row, token = 0, int(batch.mask[0].nonzero()[2])
    batch.old[row, token] = bad
    twin.old[row, token] = twin.logps[row, token]
    out, grad = run(preset(name, backend=backend), batch)
    expected, expected_grad = run(preset(name, backend=backend), twin)
    others = torch.ones_like(batch.mask)
    others[row, token] = False
    assert grad[row, token] == 0
    assert out.token_loss[row, token] == 0
    objective = preset(name)
    if objective.row_wise and objective.ratio.gradient == "token":
        # There the token's own loss is no part of the others' gradient.
        torch.testing.assert_close(grad[others], expected_grad[others], rtol=1e-12, atol=1e-16)
        torch.testing.assert_close(out.token_loss[others], expected.token_loss[others], rtol=1e-12, atol=0)
    assert grad[row, token + 1 :].abs().sum() > 0 or expected_grad[row, token + 1 :].abs().sum() == 0
    assert out.stats["neutralised"] == 1
    assert out.stats["saturated"] == (1 if math.isfinite(bad) else 0)
    assert out.stats["nonfinite"] == (0 if math.isfinite(bad) else 1)
    assert all(value.isfinite() for value in out.stats.values())


@BACKENDS
def test_raise_policy(backend: str) -> None:
    batch = make()
    objective = preset("ctpo", on_bad="raise", backend=backend)
    run(objective, batch)
    batch.old[0, int(batch.mask[0].nonzero()[0])] = -INF
    batch.old[1, int(batch.mask[1].nonzero()[0])] = 99.0
    with pytest.raises(ValueError, match="2 tokens under the mask"):
        run(objective, batch)


@BACKENDS
@ALL
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 4)])
def test_nothing_to_learn_from(name: str, backend: str, shape: tuple[int, int]) -> None:
    """Empty and all-masked batches: loss 0, gradient 0, graph connected, finite stats."""
    logps = torch.full(shape, NAN, requires_grad=True)
    mask = torch.zeros(shape, dtype=torch.bool)
    turn_ids = torch.zeros(shape, dtype=torch.long)
    out = preset(name, backend=backend)(
        logps, torch.zeros(shape), torch.full(shape[:1], NAN), mask, turn_ids=turn_ids
    )
    assert out.loss.item() == 0
    (grad,) = torch.autograd.grad(out.loss, logps)
    assert grad.shape == shape
    assert not grad.any()
    assert all(value.item() == 0 for value in out.stats.values())


@ALL
def test_empty_packed_stream(name: str) -> None:
    logps = torch.zeros(0, requires_grad=True)
    out = preset(name)(
        logps,
        torch.zeros(0),
        torch.zeros(2),
        torch.zeros(0, dtype=torch.bool),
        cu_seqlens=torch.zeros(3).long(),
        turn_ids=torch.zeros(0).long(),
    )
    (grad,) = torch.autograd.grad(out.loss, logps)
    assert out.loss.item() == 0
    assert grad.shape == (0,)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    batch = make(rows=4, length=64, drift=0.1).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, grad = run(preset("ctpo", backend=backend), batch)
        wide, wide_grad = run(preset("ctpo", backend=backend), batch.to(torch.float32))
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.loss, wide.loss)
    assert grad.dtype == dtype
    assert torch.equal(grad, wide_grad.to(dtype))


def test_half_precision_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_WARNED", {"positive"})
    batch = make().to(torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="bfloat16"):
        run(preset("ctpo"), batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(preset("ctpo"), batch)
        run(preset("ctpo"), make())


@BACKENDS
@pytest.mark.parametrize("name", ["ctpo", "cispo"])
def test_what_is_no_log_prob_warns_once(monkeypatch: pytest.MonkeyPatch, name: str, backend: str) -> None:
    """Probabilities instead of log-probs; the warning points at the caller."""
    monkeypatch.setattr(checks, "_WARNED", set())
    objective, p = preset(name, backend=backend), torch.linspace(0.1, 1.0, 10).reshape(2, 5)
    arguments = (p, p.clone(), torch.ones(2), torch.ones(2, 5, dtype=torch.bool))
    with pytest.warns(RuntimeWarning, match="10 tokens under the mask have a log-prob above 0.001") as warned:
        objective(*arguments)
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective(*arguments)


@BACKENDS
@pytest.mark.parametrize("name", ["ctpo", "reinforce"])
def test_swapped_log_probs_are_refused(name: str, backend: str) -> None:
    batch, objective = make(), preset(name, backend=backend)
    logps = batch.logps.requires_grad_()
    with pytest.raises(ValueError, match="they are swapped") as error:
        objective(batch.old, logps, batch.advantages, batch.mask)
    assert "\n" not in str(error.value)
    with torch.no_grad():  # nothing is lost where no gradient is wanted
        objective(batch.old, logps, batch.advantages, batch.mask)
    objective(logps, logps * 1.01, batch.advantages, batch.mask).loss.backward()
    assert logps.grad is not None


@BACKENDS
@pytest.mark.parametrize("dual", [0.05, None])
def test_the_ceiling_never_cuts_inside_the_region(backend: str, dual: float | None) -> None:
    """Past t = 40,000 the band 0.05·√t is wider than 10; tokens inside it keep value and gradient."""
    length = 90_000
    logps = torch.zeros(1, length, dtype=torch.float64)
    old = logps.clone()
    old[0, :13] = -1.0  # log ρ_t = 13 from t = 13 on
    batch = Batch(logps, old, torch.ones(1, dtype=torch.float64), torch.ones(1, length, dtype=torch.bool))
    out, grad = run(preset("ctpo", log_dual=dual, reduction="sum", backend=backend), batch)
    opens = math.ceil((13 / 0.05) ** 2)  # first t with 0.05·√t ≥ 13
    assert grad[0, 20 : opens - 1].abs().max() == 0
    torch.testing.assert_close(grad[0, opens:], torch.full_like(grad[0, opens:], -math.exp(13)))
    assert out.stats["clip_fraction_high"].item() == pytest.approx((opens - 1) / length, abs=2 / length)
    assert out.stats["log_ratio_max"].item() == pytest.approx(13.0)


@BACKENDS
def test_a_token_beyond_a_wide_region_is_clipped(backend: str) -> None:
    """The ceiling is the bound itself there; truncating before deciding would never clip."""
    logps = torch.zeros(1, 50_000, dtype=torch.float64)
    old = logps.clone()
    old[0, :15] = -1.0
    batch = Batch(logps, old, torch.ones(1, dtype=torch.float64), torch.ones(1, 50_000, dtype=torch.bool))
    out, grad = run(preset("ctpo", backend=backend), batch)  # 0.05·√t ≤ 11.2 < 15
    assert grad[0, 15:].abs().max() == 0
    assert out.token_loss[0, -1].item() == pytest.approx(-math.exp(0.05 * math.sqrt(50_000)), rel=1e-12)


@BACKENDS
def test_truncation_bounds_the_weight_and_keeps_the_gradient(backend: str) -> None:
    logps = torch.zeros(1, 8, dtype=torch.float64)
    batch = Batch(logps, logps - 4.0, -torch.ones(1, dtype=torch.float64), torch.ones(1, 8, dtype=torch.bool))
    knobs: dict[str, Any] = {"log_dual": None, "reduction": "sum", "backend": backend}
    out, grad = run(preset("ctpo", **knobs), batch)
    expected = torch.tensor([math.exp(min(4.0 * t, 10.0)) for t in range(1, 9)], dtype=torch.float64)
    torch.testing.assert_close(grad[0], expected)
    torch.testing.assert_close(out.token_loss[0], expected)
    assert out.stats["log_ratio_max"].item() == 10.0


@BACKENDS
def test_nothing_overflows_float32(backend: str) -> None:
    """A region wide enough to admit e^90 stops at e^80; squares of the weights do not reach infinity."""
    logps = torch.zeros(2, 10)
    batch = Batch(logps, logps - 9.0, torch.tensor([1.0, -1.0]), torch.ones(2, 10, dtype=torch.bool))
    out, grad = run(
        preset("ctpo", log_low=200.0, log_high=200.0, log_dual=None, power=0.0, backend=backend), batch
    )
    assert out.loss.isfinite()
    assert grad.isfinite().all()
    assert grad[0, -1].item() == pytest.approx(-math.exp(80) / 20, rel=1e-5)
    assert all(value.isfinite() for value in out.stats.values())
    assert 0 < out.stats["ess"].item() < 0.21


@BACKENDS
@ALL
def test_underflowing_weights_stay_finite(name: str, backend: str) -> None:
    logps = torch.zeros(2, 60, dtype=torch.float64)
    mask = torch.ones(2, 60, dtype=torch.bool)
    batch = Batch(logps, logps + 15.0, torch.tensor([1.0, -1.0], dtype=torch.float64), mask)
    out, grad = run(preset(name, backend=backend), batch)
    assert grad.isfinite().all()
    assert all(value.isfinite() for value in out.stats.values())


@BACKENDS
@pytest.mark.parametrize("name", ["ctpo", "minpro", "gspo"])
def test_one_row_of_a_million_tokens(name: str, backend: str) -> None:
    length = 1_000_000
    g = torch.Generator().manual_seed(0)
    logps = -torch.rand(1, length, generator=g)
    batch = Batch(
        logps,
        logps - 0.01 * torch.randn(1, length, generator=g),
        torch.ones(1),
        torch.ones(1, length, dtype=torch.bool),
    )
    out, grad = run(preset(name, backend=backend), batch)
    wide, wide_grad = run(preset(name, backend="compose"), batch.to(torch.float64))
    # Rounding of the inputs' difference moves a few tokens across a bound.
    flips = ((grad == 0) != (wide_grad == 0)).sum().item()
    assert flips <= 20
    assert out.loss.item() == pytest.approx(wide.loss.item(), rel=1e-4)
    assert out.stats["tokens"].item() == length


def test_packed_streams_do_not_leak_between_segments() -> None:
    """A drifting and a poisoned segment before it leave the last segment as if alone, in float32."""
    n = 20_000
    g = torch.Generator().manual_seed(0)
    logps = -torch.rand(3 * n, generator=g)
    old = logps - 0.02 * torch.randn(3 * n, generator=g)
    old[:n] -= 15.0  # drifts to 300,000
    old[n : 2 * n : 7] = NAN
    logps[n + 3 : 2 * n : 11] = INF
    mask = torch.ones(3 * n, dtype=torch.bool)
    ids = torch.arange(3).repeat_interleave(n)
    objective = preset("ctpo", reduction="sum")
    _, grad = run(objective, Batch(logps, old, torch.ones(3), mask), segment_ids=ids)
    alone = Batch(logps[None, 2 * n :], old[None, 2 * n :], torch.ones(1), mask[None, 2 * n :])
    _, expected = run(objective, alone)
    torch.testing.assert_close(grad[2 * n :], expected[0], rtol=1e-6, atol=1e-7)
    assert grad.isfinite().all()


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_masks_of_numbers_and_strided_tensors(dtype: torch.dtype, backend: str) -> None:
    batch = make(drift=0.1)
    expected, expected_grad = run(preset("ctpo", backend=backend), batch)
    strided = Batch(
        batch.logps.T.contiguous().T, batch.old.T.contiguous().T, batch.advantages, batch.mask.to(dtype)
    )
    assert not strided.logps.is_contiguous()
    out, grad = run(preset("ctpo", backend=backend), strided)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(grad, expected_grad)
