"""What trainers really hand over, through the Triton kernels. Run by test_triton.py."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from ctpo.objectives import preset, triton_launch

from .batches import Batch, make, run, same
from .triton_values import DEVICE, INF, agree, drifting, on_device

NAN = float("nan")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "TILE", 16)


@pytest.mark.parametrize("name", ["ctpo", "minpro", "cispo", "gspo"])
def test_masked_values_change_nothing(name: str) -> None:
    objective, batch = preset(name, backend="triton"), drifting(20)
    expected, expected_grad = run(objective, batch)
    for bad in (NAN, INF, -9999.0):
        batch.logps[~batch.mask], batch.old[~batch.mask] = bad, -bad
        batch.advantages[2] = NAN  # a row without tokens
        out, grad = run(objective, batch)
        same(out, expected, 0.0)
        assert torch.equal(grad, expected_grad)


def test_advantages_and_weights_where_no_token_counts_change_nothing() -> None:
    """Outside the mask, under rejection, and where the log-probs are unusable."""
    results = []
    for fill in (0.0, NAN):
        batch = drifting(20, per_token=True)
        rejected = torch.arange(20, device=DEVICE).expand(5, 20) % 3 == 0
        weights = torch.ones_like(batch.logps)
        nothing = ~batch.mask | rejected
        nothing[0, 3] = nothing[1, 4] = True
        batch.advantages[nothing] = weights[nothing] = fill
        results.append(
            run(preset("ctpo", backend="triton"), batch, loss_mask=~rejected, weights=weights)
        )  # fmt: skip
    (out, grad), (expected, expected_grad) = results
    same(out, expected, 0.0)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("bad", [NAN, INF, -9999.0, 25.0])
def test_an_unusable_token_is_counted_and_its_row_lives(bad: float) -> None:
    batch = on_device(make(rows=5, length=20, drift=0.02))
    token = int(batch.mask[0].nonzero()[2])
    batch.old[0, token] = bad
    out, grad = run(preset("ctpo", backend="triton"), batch)
    assert grad[0, token] == out.token_loss[0, token] == 0
    assert out.token_loss[0, token + 1 :].any()
    assert out.stats["neutralised"] == 1
    assert out.stats["saturated"] == (1 if math.isfinite(bad) else 0)


def test_raise_policy() -> None:
    with pytest.raises(ValueError, match="2 tokens under the mask"):
        run(preset("ctpo", on_bad="raise", backend="triton"), drifting(20))
    run(preset("ctpo", on_bad="raise", backend="triton"), on_device(make(rows=5, length=9)))


@pytest.mark.parametrize("name", ["ctpo", "sequence", "minpro", "reinforce"])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 20), (2, 1)])
def test_nothing_to_learn_from(name: str, shape: tuple[int, int]) -> None:
    logps = torch.full(shape, NAN, device=DEVICE, requires_grad=True)
    nothing = torch.zeros(shape, dtype=torch.bool, device=DEVICE)
    advantages = torch.full(shape[:1], NAN, device=DEVICE)
    out = preset(name, backend="triton")(logps, torch.zeros_like(logps), advantages, nothing)
    (grad,) = torch.autograd.grad(out.loss, logps)
    assert out.loss.item() == 0
    assert grad.shape == shape
    assert not grad.any()
    assert all(value.item() == 0 for value in out.stats.values())


@pytest.mark.parametrize("length", [1, 2, 16, 17])
def test_short_rows_and_full_tiles(length: int) -> None:
    for name in ("ctpo", "minpro"):
        agree(name, on_device(make(rows=3, length=length, drift=0.3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    batch = on_device(make(rows=4, length=40, drift=0.1)).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, grad = run(preset("ctpo", backend="triton"), batch)
    wide, wide_grad = run(preset("ctpo", backend="triton"), batch.to(torch.float32))
    assert out.loss.dtype == torch.float32
    assert grad.dtype == dtype
    same(out, wide, 0.0)
    # The interpreter cuts bits off where a GPU and torch round.
    torch.testing.assert_close(grad.float(), wide_grad, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_mixed_dtypes() -> None:
    batch = drifting(20)
    batch.logps, batch.advantages = batch.logps.float(), batch.advantages.half()
    agree("ctpo", batch)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_strides_and_masks_of_numbers(dtype: torch.dtype) -> None:
    batch = drifting(20)
    expected, expected_grad = run(preset("ctpo", backend="triton"), batch)
    wide = torch.full((5, 43), NAN, dtype=torch.float64, device=DEVICE)
    wide[:, 2:42:2] = batch.logps
    mask = torch.ones(5, 21, dtype=dtype, device=DEVICE)
    mask[:, 1:] = batch.mask.to(dtype)
    advantages = torch.stack([batch.advantages, batch.advantages], 1)[:, 0]
    strided = Batch(wide[:, 2:42:2], batch.old.T.contiguous().T, advantages, mask[:, 1:])
    logps = strided.logps.detach().requires_grad_()  # run would clone the strides away
    assert logps.stride() == (43, 2)
    out = preset("ctpo", backend="triton")(logps, strided.old, strided.advantages, strided.mask)
    (grad,) = torch.autograd.grad(out.loss, logps)
    same(out, expected, 0.0)
    assert torch.equal(grad, expected_grad)


def test_advantages_that_repeat_without_memory() -> None:
    batch = drifting(20)
    expected, expected_grad = run(preset("ctpo", backend="triton"), batch)
    batch.advantages = batch.advantages[:, None].expand(5, 20)
    out, grad = run(preset("ctpo", backend="triton"), batch)
    same(out, expected, 0.0)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("name", ["ctpo", "ctpo-prefix-gradient", "gspo"])
def test_one_row_of_a_million_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The interpreter takes some milliseconds a tile, whatever its size.
    monkeypatch.setattr(triton_launch, "TILE", 2048 if DEVICE == "cuda" else 1 << 16)
    length = 1_000_000
    g = torch.Generator().manual_seed(0)
    logps = -torch.rand(1, length, generator=g, dtype=torch.float64)
    old = logps - 0.01 * torch.randn(1, length, generator=g, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    # Sums of a million terms in two orders; a decision that falls the other way would show.
    agree(name, on_device(Batch(logps, old, one, torch.ones(1, length, dtype=torch.bool))), 1e-9)


def test_the_ceiling_never_cuts_inside_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "TILE", 1 << 14)
    logps = torch.zeros(2, 90_000, dtype=torch.float64)
    old = logps.clone()
    old[:, :13] = -1.0
    advantages = torch.tensor([1.0, -0.5], dtype=torch.float64)
    batch = on_device(Batch(logps, old, advantages, torch.ones(2, 90_000, dtype=torch.bool)))
    agree("ctpo", batch)
    opens = math.ceil((13 / 0.05) ** 2)
    _, grad = run(preset("ctpo", reduction="sum", backend="triton"), batch)
    assert grad[0, opens:].amax().item() == pytest.approx(-math.exp(13))  # inside: not cut at e^10


def test_nothing_overflows_float32() -> None:
    logps = torch.zeros(2, 20)
    batch = Batch(logps, logps - 9.0, torch.tensor([1.0, -1.0]), torch.ones(2, 20, dtype=torch.bool))
    objective = preset("ctpo", low=200.0, high=200.0, dual=None, power=0.0, backend="triton")
    out, grad = run(objective, on_device(batch))
    assert out.loss.isfinite()
    assert grad[0, -1].item() == pytest.approx(-math.exp(80) / 40, rel=1e-4)
    assert all(value.isfinite() for value in out.stats.values())


def test_inputs_are_left_alone() -> None:
    batch = drifting(20)
    before = [x.clone() for x in (batch.logps, batch.old, batch.advantages, batch.mask)]
    run(preset("ctpo", backend="triton"), batch)
    for then, now in zip(before, (batch.logps, batch.old, batch.advantages, batch.mask), strict=True):
        assert torch.equal(then, now)
