"""The C pass equals the definition: values, gradients and statistics, for every objective, layout and dtype."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from ctpo.objectives import preset
from ctpo.objectives.cpu.library import available
from ctpo.objectives.numerics import LOG_WEIGHT_CAP
from ctpo.objectives.reductions import REDUCTIONS

from .batches import Batch, make, run, same
from .compositions import NAMES, PRESETS, both, objective

pytestmark = pytest.mark.skipif(not available(), reason="needs a C compiler")


def hostile(length: int, drift: float, seed: int, per_token: bool) -> Batch:
    """Unusable tokens of each kind, and NaN where nothing counts."""
    batch = make(rows=6, length=length, drift=drift, seed=seed, per_token=per_token)
    batch.old[0, 3], batch.old[1, 4] = float("-inf"), -9999.0
    batch.logps[5, 2], batch.logps[5, 7] = float("nan"), float("inf")
    batch.mask[0, 3] = batch.mask[1, 4] = batch.mask[5, 2] = batch.mask[5, 7] = True
    batch.logps[1, ~batch.mask[1]] = float("nan")
    if per_token:
        batch.advantages[~batch.mask] = float("nan")
    else:
        batch.advantages[2] = float("nan")  # a row without tokens
    return batch


def agree(
    fast: Any, definition: Any, batch: Batch, rtol: float = 1e-11, atol: float = 1e-16, **arguments: Any
) -> None:
    """Assert that two objectives leave the same."""
    (out, grad), (expected, expected_grad) = (run(each, batch, **arguments) for each in (fast, definition))
    same(out, expected, rtol)
    torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_rows(name: str) -> None:
    """Rows shorter and longer than a chunk of the C loops, near the old policy and far from it."""
    for seed, (drift, per_token, length) in enumerate(
        ((0.02, False, 40), (0.2, True, 1200), (3.0, False, 1100))
    ):
        agree(*both(name), hostile(length, drift, seed, per_token))
    beyond = make(drift=0.05, length=40)
    beyond.old -= 12  # log weights that may not be exponentiated
    agree(*both(name), beyond)


@pytest.mark.parametrize("name", PRESETS)
def test_float32(name: str) -> None:
    fast, definition = both(name)
    batch = hostile(1100, 0.05, 0, False).to(torch.float32)
    (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
    for part in ("clip_fraction_high", "clip_fraction_low", "clip_fraction_dual"):
        assert out.stats[part].item() == expected.stats[part].item()
    same(out, expected, 1e-5, 2e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_packed(name: str) -> None:
    """Segments shorter and longer than a chunk, of masked tokens alone, and without tokens."""
    row = make(rows=1, length=1300, drift=0.2)
    row.old[0, 11], row.old[0, 40] = float("nan"), -9999.0
    row.mask[0, 35:47] = False
    lengths = torch.tensor([14, 0, 1, 20, 12, 1253])
    advantages = torch.tensor([1.0, 9.0, -2.0, 0.5, 2.0, -1.0]).double()
    batch = Batch(row.logps[0], row.old[0], advantages, row.mask[0])
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.arange(6).repeat_interleave(lengths)
    for packing in ({"cu_seqlens": cu.int()}, {"segment_ids": ids}):
        agree(*both(name), batch, rtol=1e-10, atol=1e-14, **packing)


def test_more_segments_than_were_expected() -> None:
    """Advantages of tokens do not say how many segments there are."""
    batch = make(rows=1, length=9000, drift=0.2, per_token=True)
    flat = Batch(batch.logps[0], batch.old[0], batch.advantages[0], batch.mask[0])
    agree(*both("ctpo"), flat, rtol=1e-10, segment_ids=torch.arange(9000))


@pytest.mark.parametrize("reduction", sorted(REDUCTIONS))
@pytest.mark.parametrize("counts", [{}, {"num_tokens": 77, "num_sequences": torch.tensor(5.0)}])
def test_denominators_weights_and_rejection(reduction: str, counts: dict[str, Any]) -> None:
    """Weights per sequence and per token, NaN where nothing counts; advantages likewise."""
    for name in ("ctpo", "gspo", "cispo"):
        for per_token in (False, True):
            batch = make(rows=6, length=700, drift=0.1, per_token=per_token)
            rejected = torch.rand(6, 700, generator=torch.Generator().manual_seed(1)) < 0.2
            rejected[1] = True
            for weights in (torch.rand(6), torch.rand(6, 700).masked_fill(~batch.mask, float("nan"))):
                arguments = counts | {"rejection_mask": rejected}
                agree(*both(name, reduction=reduction), batch, weights=weights.double(), **arguments)


@pytest.mark.parametrize("name", PRESETS)
def test_one_token_per_row(name: str) -> None:
    """Here one advantage per sequence and one per token have the same shape."""
    for per_token in (False, True):
        agree(*both(name), make(rows=6, length=1, drift=0.5, seed=1, per_token=per_token))


@pytest.mark.parametrize("name", ["ctpo", "sequence", "gspo"])
@pytest.mark.parametrize("packed", [False, True])
def test_sums_of_float32_are_kept_in_float64(name: str, packed: bool) -> None:
    """Small drift after a large one that is taken back: a float32 sum near 57 moves in steps of 4e-6."""
    d = torch.cat([torch.full((3,), 19.0), torch.full((2000,), 3e-7), torch.full((3,), -19.0)])
    inputs: tuple[Tensor, ...] = (
        torch.zeros(1, len(d)),
        -d[None],
        torch.tensor([1.0]),
        torch.ones(1, len(d)),
    )
    packing = {}
    if packed:  # after a segment that drifted
        before = torch.full((1000,), 19.0)
        total = len(d) + 1000
        inputs = (torch.zeros(total), -torch.cat([before, d]), torch.ones(2), torch.ones(total))
        packing = {"cu_seqlens": torch.tensor([0, 1000, total])}
    fast = preset(name, backend="native")
    result = fast(*inputs, **packing).token_loss
    exact = fast(*(x.double() for x in inputs), **packing).token_loss
    torch.testing.assert_close(result.double(), exact, rtol=6e-7, atol=1e-9)


def test_losses_of_float32_are_summed_in_float64() -> None:
    """Losses of −1e8, −1 and 1e8: a float32 sum holds 0."""
    logps = torch.full((3, 1), -1.0)
    advantages = torch.tensor([1e8, 1.0, -1e8])
    loss = preset("ctpo", reduction="sum", backend="native")(
        logps, logps.clone(), advantages, torch.ones(3, 1)
    ).loss
    assert loss == -1.0


@pytest.mark.parametrize("length", [32767, 32769, 65537])
def test_tokens_are_counted_past_what_sixteen_bits_hold(length: int) -> None:
    batch = make(rows=1, length=length, drift=0.02)
    batch.mask[:] = True
    agree(*both("ctpo", reduction="seq-mean-token-mean"), batch)


def test_the_exponential() -> None:
    """Read off token losses of one-token rows: within two units in the last place."""
    x = torch.cat([torch.linspace(-19.9, 19.9, 40_001), torch.tensor([0.0, 1e-8, -1e-8])])
    fast = preset("ppo", ratio_low=2.0, ratio_high=float("inf"), reduction="sum", backend="native")
    out = fast(x[:, None], torch.zeros(len(x), 1), torch.ones(len(x)), torch.ones(len(x), 1))
    exact = x.double().exp()
    assert ((-out.token_loss[:, 0].double() - exact).abs() / exact).max() < 2e-7


@pytest.mark.parametrize("drift", [1e-4, 1e-2, 0.3, 0.36, 3.0])
def test_k3_of_float32_keeps_its_digits(drift: float) -> None:
    """e^d − 1 − d cancels near 0."""
    logps = torch.full((1, 600), -1.0)
    old = logps - drift * torch.linspace(-1, 1, 600)
    d = (logps - old).double()
    out = preset("ctpo", backend="native")(logps, old, torch.ones(1), torch.ones(1, 600))
    torch.testing.assert_close(
        out.stats["kl_k3"], (d.expm1() - d).mean(), rtol=1e-5, atol=0, check_dtype=False
    )


def test_weights_below_the_range_of_float32_are_zero() -> None:
    logps = torch.zeros(1, 12)
    out = preset("ctpo", backend="native")(logps, logps + 15.0, torch.ones(1), torch.ones(1, 12))
    exact = -(-15.0 * torch.arange(1, 13).double()).exp()
    torch.testing.assert_close(out.token_loss[0, :5].double(), exact[:5], rtol=5e-7, atol=0)
    assert not out.token_loss[0, 5:].any()
    assert all(value.isfinite() for value in out.stats.values())


@pytest.mark.parametrize("gap", [6.0, 9.0])
def test_a_weight_far_out_has_finite_squares(gap: float) -> None:
    """Inside of the bounds, and truncated at e^80."""
    logps = torch.zeros(2, 10)
    batch = Batch(logps, logps - gap, torch.tensor([1.0, -0.5]), torch.ones(2, 10, dtype=torch.bool))
    fast, definition = both("ctpo", log_low=200.0, log_high=200.0, log_dual=None, power=0.0)
    same(run(fast, batch)[0], run(definition, batch)[0], 1e-5)


@pytest.mark.parametrize("drift", [0.001, -0.001])
def test_extremes_inside_of_the_bounds_are_of_tokens(drift: float) -> None:
    """Not the zeros that stand for the others."""
    logps = torch.full((2, 700), drift, dtype=torch.float64)
    mask = torch.arange(700) % 5 > 1
    batch = Batch(logps, torch.zeros_like(logps), torch.tensor([1.0, -0.5]), mask.expand(2, -1))
    (out, _), (expected, _) = (run(each, batch) for each in both("ctpo"))
    assert out.stats["clip_fraction"] == 0
    same(out, expected, 1e-11)


def test_dual_bound_below_the_upper_one_under_advantages_of_tokens() -> None:
    batch = make(rows=3, length=600, drift=0.001, per_token=True)
    batch.logps[1] = batch.old[1] + 0.001
    fast, definition = both("ctpo", log_high=10.0, log_dual=0.01)
    assert run(fast, batch)[0].stats["clip_fraction_dual"] > 0
    agree(fast, definition, batch)


def test_the_ceiling_is_of_the_sequence() -> None:
    """A band that passes the cap only in the longer of two rows."""
    assert 1.2 * 64**0.5 < LOG_WEIGHT_CAP < 1.2 * 128**0.5
    batch = make(rows=2, length=128, drift=2.5)
    batch.mask[:] = True
    batch.mask[0, 60:] = False
    agree(*both("ctpo", log_high=1.2, log_dual=1.2), batch)


def test_nothing() -> None:
    fast = preset("ctpo", backend="native")
    for shape in ((0, 0), (2, 0), (0, 5)):
        nothing = torch.zeros(shape)
        assert fast(nothing, nothing, torch.zeros(shape[0]), nothing).loss == 0
    nothing = torch.zeros(0)
    assert fast(nothing, nothing, torch.zeros(3), nothing, segment_ids=nothing.long()).loss == 0
    assert fast(nothing, nothing, torch.zeros(0), nothing, cu_seqlens=torch.tensor([0])).loss == 0


@pytest.mark.parametrize("packed", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(packed: bool) -> None:
    batch = make(rows=40, length=5000, drift=0.05).to(torch.float32)
    packing = {}
    if packed:
        batch = Batch(*(x.reshape(-1) if x.ndim == 2 else x for x in vars(batch).values()))
        packing = {"cu_seqlens": torch.arange(0, 200_001, 5000)}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            out, grad = run(preset("ctpo-prefix-gradient", backend="native"), batch, **packing)
            results.append([out.loss, out.token_loss, grad, *out.stats.values()])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


def test_inputs_are_left_alone() -> None:
    batch = make(drift=0.5)
    before = [x.clone() for x in vars(batch).values()]
    run(preset("ctpo", backend="native"), batch)
    assert all(torch.equal(then, now) for then, now in zip(before, vars(batch).values(), strict=True))


def layouts(x: Tensor, choice: int) -> Tensor:
    """The same values elsewhere in memory: transposed, at an odd offset, strided, between two elements."""
    if choice == 0 and x.ndim == 2:
        return x.t().contiguous().t()
    if choice == 1:
        space = torch.zeros(x.numel() + 3, dtype=x.dtype)
        return space[3:].view(x.shape).copy_(x)
    if choice == 2:
        return torch.zeros(*x.shape, 2, dtype=x.dtype)[..., 0].copy_(x)
    if choice == 3 and x.is_floating_point() and x.numel():
        return torch.frombuffer(bytearray(x.nbytes + 1), dtype=x.dtype, offset=1).view(x.shape).copy_(x)
    return x


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_call(seed: int) -> None:
    """Random objectives, shapes, layouts in memory, dtypes, masks and special values."""
    draw, g = random.Random(seed), torch.Generator().manual_seed(seed)
    name, packed = draw.choice(NAMES), seed % 3 == 0
    shape = (
        (draw.choice([1, 9, 511, 513, 1100]),) if packed else (draw.choice([1, 3]), draw.choice([1, 63, 514]))
    )
    sequences = draw.choice([1, 4]) if packed else shape[0]
    logps = -3 * torch.rand(shape, generator=g, dtype=torch.float64)
    old = logps - draw.choice([1e-3, 0.05, 1.0, 6.0]) * torch.randn(shape, generator=g, dtype=torch.float64)
    for _ in range(draw.choice([0, 3])):
        old.view(-1)[draw.randrange(old.numel())] = draw.choice([float("nan"), float("-inf"), -9999.0, 0.0])
    advantages = torch.randn(draw.choice([shape, (sequences,)]), generator=g, dtype=torch.float64)
    mask = (torch.rand(shape, generator=g) < draw.choice([0.1, 0.7, 1.0])).to(
        draw.choice([torch.bool, torch.uint8, torch.int64, torch.float32])
    )
    tensors = [layouts(x, draw.randrange(6)) for x in (logps, old, advantages, mask)]
    arguments: dict[str, Any] = {}
    if packed:
        ids = torch.randint(0, sequences, shape, generator=g).sort().values
        arguments["segment_ids"] = layouts(ids.to(draw.choice([torch.int64, torch.int32])), draw.randrange(4))
    if draw.random() < 0.5:
        arguments["weights"] = layouts(torch.rand(shape, generator=g), draw.randrange(6))
    if draw.random() < 0.5:
        arguments["rejection_mask"] = torch.rand(shape, generator=g) < 0.3
    agree(*both(name), Batch(*tensors), rtol=1e-9, **arguments)


def test_bytes_of_a_boolean_mask_other_than_0_and_1() -> None:
    """Every byte but 0 is true, also where eight of them are added up at a time."""
    batch = make(rows=3, length=700, drift=0.3)
    odd = (batch.mask.to(torch.uint8) * 255).view(torch.bool)
    fast = objective("ctpo-geomean", "native")
    expected, expected_grad = run(fast, batch)
    out, grad = run(fast, Batch(batch.logps, batch.old, batch.advantages, odd))
    same(out, expected, 0.0)
    assert torch.equal(grad, expected_grad)
