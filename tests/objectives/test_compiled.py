"""The pass in C equals the composition, wherever a C compiler is at hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.objectives import Objective, preset
from ctpo.objectives.cpu import library
from ctpo.objectives.surrogates import StopGradientWeight

from .batches import Batch, make, run, same
from .test_fused import COMPOSED, FUSED

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"
)


def pair(name: str, **knobs: Any) -> tuple[Objective, Objective]:
    return preset(name, backend="native", **knobs), preset(name, backend="compose", **knobs)


def hostile(length: int, drift: float, seed: int, per_token: bool) -> Batch:
    """Unusable tokens of each kind; NaN where nothing counts."""
    batch = make(rows=6, length=length, drift=drift, seed=seed, per_token=per_token)
    batch.old[0, 3], batch.old[1, 4] = float("-inf"), -9999.0
    batch.logps[5, 2], batch.logps[5, 7] = float("nan"), float("inf")
    batch.mask[0, 3] = batch.mask[1, 4] = batch.mask[5, 2] = batch.mask[5, 7] = True
    batch.logps[1, ~batch.mask[1]] = float("nan")
    if per_token:
        batch.advantages[~batch.mask] = float("nan")
    else:
        batch.advantages[2] = float("nan")
    return batch


@pytest.mark.parametrize("name", FUSED)
def test_equals_composition(name: str) -> None:
    """Rows shorter and longer than a chunk of the C loops."""
    fast, definition = pair(name)
    for seed, (drift, per_token, length) in enumerate(
        ((0.02, False, 40), (0.2, True, 1200), (3.0, False, 1100))
    ):
        batch = hostile(length, drift, seed, per_token)
        (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
        same(out, expected, 1e-11)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", FUSED)
def test_float32(name: str) -> None:
    fast, definition = pair(name)
    batch = hostile(1100, 0.05, 0, False).to(torch.float32)
    (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
    for part in ("clip_fraction_high", "clip_fraction_low", "clip_fraction_dual"):
        assert out.stats[part].item() == expected.stats[part].item()
    same(out, expected, 1e-5, 2e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_other_compositions(name: str) -> None:
    ratio, region, surrogate = COMPOSED[name]
    parts: dict[str, Any] = {"ratio": ratio, "trust_region": region, "surrogate": surrogate}
    for drift in (0.05, 1.5, 6.0):
        batch = make(drift=drift, length=600)
        out, grad = run(Objective(**parts, backend="native"), batch)
        expected, expected_grad = run(Objective(**parts, backend="compose"), batch)
        same(out, expected, 1e-11)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", FUSED)
def test_packed(name: str) -> None:
    fast, definition = pair(name)
    rows = make(rows=1, length=3000, drift=0.1)
    cu = torch.tensor([0, 5, 5, 700, 701, 3000])
    batch = Batch(rows.logps[0], rows.old[0], torch.randn(5, dtype=torch.float64), rows.mask[0])
    (out, grad), (expected, expected_grad) = (run(o, batch, cu_seqlens=cu) for o in (fast, definition))
    assert "Native" in type(out.token_loss.grad_fn).__name__
    same(out, expected, 1e-10)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", FUSED)
def test_one_token_a_row(name: str) -> None:
    """Here one advantage a sequence and one a token have the same shape."""
    fast, definition = pair(name)
    for per_token in (False, True):
        batch = make(rows=6, length=1, drift=0.5, seed=1, per_token=per_token)
        (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
        same(out, expected, 1e-11)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


def test_the_exponential() -> None:
    """Read off token losses of one-token rows: within two units in the last place."""
    x = torch.cat([torch.linspace(-19.9, 19.9, 40_001), torch.tensor([0.0, 1e-8, -1e-8])])
    objective = preset("ppo", ratio_low=2.0, ratio_high=float("inf"), reduction="sum", backend="native")
    zeros = torch.zeros(len(x), 1)
    out = objective(x[:, None], zeros, torch.ones(len(x)), torch.ones(len(x), 1))
    exact = x.double().exp()
    assert ((-out.token_loss[:, 0].double() - exact).abs() / exact).max() < 2e-7


def test_weights_below_the_range_of_float32_are_zero() -> None:
    logps = torch.zeros(1, 12)
    out = preset("ctpo", backend="native")(logps, logps + 15.0, torch.ones(1), torch.ones(1, 12))
    exact = -(-15.0 * torch.arange(1, 13).double()).exp()
    torch.testing.assert_close(out.token_loss[0, :5].double(), exact[:5], rtol=5e-7, atol=0)
    assert not out.token_loss[0, 5:].any()
    assert all(value.isfinite() for value in out.stats.values())


@pytest.mark.parametrize("name", ["grpo", "cispo"])
def test_gradient_of_token_losses_and_half_precision(name: str) -> None:
    """Of several chunks, one of them without a token."""
    batch = make(rows=4, length=1700)
    batch.mask[:, 512:1024] = False
    weights = torch.linspace(0.5, 2, batch.logps.numel(), dtype=torch.float64).reshape(batch.logps.shape)
    for dtype in (torch.float64, torch.bfloat16):
        grads = []
        for objective in pair(name):
            logps = batch.logps.to(dtype).requires_grad_()
            out = objective(logps, batch.old.to(dtype), batch.advantages.to(dtype), batch.mask)
            grads += torch.autograd.grad(
                out.loss + (out.token_loss * weights.to(out.loss.dtype)).sum(), logps
            )
        torch.testing.assert_close(
            grads[0], grads[1], rtol=1e-2 if dtype == torch.bfloat16 else 1e-11, atol=1e-12
        )


@pytest.mark.parametrize("gap", [6.0, 9.0])
def test_a_weight_far_out_has_finite_squares(gap: float) -> None:
    """Inside of the bounds, and truncated at e^80."""
    logps = torch.zeros(2, 10)
    batch = Batch(logps, logps - gap, torch.tensor([1.0, -0.5]), torch.ones(2, 10, dtype=torch.bool))
    fast, definition = pair("ctpo", log_low=200.0, log_high=200.0, log_dual=None, power=0.0)
    same(run(fast, batch)[0], run(definition, batch)[0], 1e-5)


@pytest.mark.parametrize("drift", [0.001, -0.001])
def test_extremes_inside_of_the_bounds_are_of_tokens(drift: float) -> None:
    """Not the zeros that stand for the others."""
    logps = torch.full((2, 700), drift, dtype=torch.float64)
    mask = torch.arange(700) % 5 > 1
    batch = Batch(logps, torch.zeros_like(logps), torch.tensor([1.0, -0.5]), mask.expand(2, -1))
    (out, _), (expected, _) = (run(objective, batch) for objective in pair("ctpo"))
    assert out.stats["clip_fraction"] == 0
    same(out, expected, 1e-11)


def test_dual_bound_below_the_upper_one_under_advantages_of_tokens() -> None:
    batch = make(rows=3, length=600, drift=0.001, per_token=True)
    batch.logps[1] = batch.old[1] + 0.001
    fast, definition = pair("ctpo", log_high=10.0, log_dual=0.01)
    (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
    assert out.stats["clip_fraction_dual"] > 0
    same(out, expected, 1e-11)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


def test_empty_and_strided() -> None:
    nothing = torch.zeros(2, 0)
    assert preset("ctpo", backend="native")(nothing, nothing, torch.zeros(2), nothing).loss.item() == 0
    batch = make(drift=0.1, per_token=True)
    strided = Batch(*(x.T.contiguous().T for x in (batch.logps, batch.old, batch.advantages, batch.mask)))
    fast = preset("cispo", backend="native")
    assert isinstance(fast.surrogate, StopGradientWeight)
    assert torch.equal(run(fast, strided)[1], run(fast, batch)[1])


def test_a_missing_or_failing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CTPO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "EXTENSION_SUFFIXES", [])
    library.library.cache_clear()
    library.available.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        patch.delenv("CC", raising=False)
        with pytest.raises(ValueError, match=r'needs a C compiler; install gcc or clang, .* backend="auto"'):
            run(preset("ctpo", backend="native"), make())
        run(preset("ctpo"), make())  # needs none
    monkeypatch.setenv("CC", "false")
    with pytest.raises(ValueError, match="false failed"):
        run(preset("ctpo", backend="native"), make())
    library.library.cache_clear()
    library.available.cache_clear()
