"""The fused path equals the composition: values, gradients, stats, however the batch is cut into blocks."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ctpo.objectives import Objective, preset, preset_names
from ctpo.objectives.cpu.supported import RATIOS, objective_refusal
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.quantile_gate import QuantileGate
from ctpo.objectives.ratios import CumulativeRatio, PrefixMeanRatio, SequenceRatio, TokenRatio
from ctpo.objectives.surrogates import Gated, Linear, MinClip, StopGradientWeight
from ctpo.objectives.tokens import sanitise
from ctpo.objectives.trust_regions import LogBand, RatioBand, Unbounded

from .batches import Batch, make, run, same

FUSED = [name for name in preset_names() if not name.endswith("quantile")]


def pair(name: str, **knobs: Any) -> tuple[Objective, Objective]:
    return preset(name, **knobs), preset(name, backend="compose", **knobs)


@pytest.mark.parametrize("name", FUSED)
def test_equals_composition(name: str) -> None:
    fast, definition = pair(name)
    for seed, drift in enumerate((1e-3, 0.1, 2.0)):
        batch = make(drift=drift, seed=seed, length=20, per_token=seed == 2)
        batch.old[0, 3] = float("-inf")
        batch.old[1, 4] = -9999.0
        (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
        same(out, expected, 1e-11)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("ratio", [CumulativeRatio("through"), SequenceRatio("through")])
def test_a_stop_gradient_weight_is_a_constant_whatever_its_ratio(ratio: Any) -> None:
    def objective(how: str) -> Objective:
        parts = {"trust_region": LogBand(0.1, 0.3), "surrogate": StopGradientWeight()}
        return Objective(ratio=ratio, backend=how, **parts)

    batch = make(drift=0.1, seed=0, length=20)
    (_, grad), (_, expected) = run(objective("auto"), batch), run(objective("compose"), batch)
    torch.testing.assert_close(grad, expected, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", FUSED)
def test_packed_streams(name: str) -> None:
    """Segments shorter and longer than a piece, empty ones, ones that begin where a piece does or a token later."""
    fast, definition = pair(name)
    row = make(rows=1, length=97, drift=0.2)
    row.old[0, 11], row.old[0, 40] = float("nan"), -9999.0
    row.mask[0, 35] = True  # the last of its segment, alone in its piece of 7
    batch = Batch(
        row.logps[0], row.old[0], torch.tensor([1.0, 9.0, -2.0, 0.5, 2.0, -1.0]).double(), row.mask[0]
    )
    lengths = torch.tensor([14, 0, 1, 21, 12, 49])
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.arange(6).repeat_interleave(lengths)
    for packing in ({"cu_seqlens": cu}, {"segment_ids": ids}):
        (out, grad), (expected, expected_grad) = (run(o, batch, **packing) for o in (fast, definition))
        assert "Native" in type(out.token_loss.grad_fn).__name__
        same(out, expected, 1e-11)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", FUSED)
def test_float32_takes_the_same_decisions(name: str) -> None:
    fast, definition = pair(name)
    batch = make(rows=9, length=300, drift=0.05).to(torch.float32)
    (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
    for part in ("clip_fraction_high", "clip_fraction_low", "clip_fraction_dual"):
        assert out.stats[part].item() == expected.stats[part].item()
    same(out, expected, 1e-5, 1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["ctpo", "sequence", "gspo"])
@pytest.mark.parametrize("packed", [False, True])
def test_sums_of_float32_are_kept_in_float64(name: str, packed: bool) -> None:
    """Small drift after a large one that is taken back: a float32 sum near 57 moves in steps of 4e-6."""
    d = torch.cat([torch.full((3,), 19.0), torch.full((2000,), 3e-7), torch.full((3,), -19.0)])
    advantages, mask = torch.tensor([1.0]), torch.ones(1, len(d), dtype=torch.bool)
    inputs: tuple[torch.Tensor, ...] = (torch.zeros(1, len(d)), -d[None], advantages, mask)
    packing = {}
    if packed:  # after a segment that drifted
        before = torch.full((1000,), 19.0)
        inputs = (
            torch.zeros(len(d) + 1000),
            -torch.cat([before, d]),
            advantages.repeat(2),
            mask.new_ones(len(d) + 1000),
        )
        packing = {"cu_seqlens": torch.tensor([0, 1000, len(d) + 1000])}
    objective = preset(name)
    found = objective(*inputs, **packing).token_loss
    exact = objective(*(x.double() if x.is_floating_point() else x for x in inputs), **packing).token_loss
    torch.testing.assert_close(found.double(), exact, rtol=6e-7, atol=1e-9)


@pytest.mark.parametrize("length", [32767, 32768])
def test_positions_are_counted_past_what_sixteen_bits_hold(length: int) -> None:
    batch = make(rows=1, length=length, drift=0.02)
    batch.mask[:] = True
    (out, grad), (expected, expected_grad) = (run(objective, batch) for objective in pair("ctpo"))
    same(out, expected, 1e-11)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


def test_rows_of_float32_are_summed_in_float64() -> None:
    """Losses of −1e8, −1 and 1e8: a float32 sum holds 0."""
    logps, mask = torch.full((3, 1), -1.0), torch.ones(3, 1, dtype=torch.bool)
    advantages = torch.tensor([1e8, 1.0, -1e8])
    assert preset("ctpo", reduction="sum")(logps, logps.clone(), advantages, mask).loss == -1.0


def test_auto_takes_the_fused_path_and_details_the_composed_one() -> None:
    batch = make()
    logps = batch.logps.clone().requires_grad_()
    out = preset("ctpo")(logps, batch.old, batch.advantages, batch.mask)
    assert "Native" in type(out.token_loss.grad_fn).__name__
    out = preset("ctpo")(logps, batch.old, batch.advantages, batch.mask, details=True)
    assert "Native" not in type(out.token_loss.grad_fn).__name__


def test_plan_refuses_what_it_does_not_know() -> None:
    class Odd(TokenRatio):
        pass

    band = RatioBand(0.2, 0.2)
    assert objective_refusal(TokenRatio(), band, MinClip()) is None
    assert objective_refusal(Odd(), band, MinClip()) is not None
    assert objective_refusal(TokenRatio(), band, Gated()) is not None
    assert (
        objective_refusal(TokenRatio(), RatioBand(0.2, 0.2, statistic=CumulativeRatio()), MinClip())
        is not None
    )
    assert objective_refusal(TokenRatio(), QuantileGate(), MinClip()) is not None


COMPOSED = {
    "linear": (CumulativeRatio(), Unbounded(), Linear()),
    "linear-in-a-band": (CumulativeRatio(), LogBand(0.1, 0.1, 0.2, 0.5), Linear()),
    "weight": (SequenceRatio(), LogBand(0.1, 0.3), StopGradientWeight()),
    "scaled-weight": (CumulativeRatio(), LogBand(0.01, 0.02, power=0.5), StopGradientWeight()),
    "token-through": (TokenRatio("through"), RatioBand(0.2, 0.2, 3.0), MinClip()),
    "mean-through": (PrefixMeanRatio("through"), LogBand(0.05, 0.05, None, -0.5), MinClip()),
    "sequence-through": (SequenceRatio("through"), LogBand(2.0, 2.0, 3.0), MinClip()),
    "weight-through": (CumulativeRatio("through"), LogBand(0.1, 0.3), Linear()),
    "one-sided": (CumulativeRatio(), LogBand(float("inf"), 0.1, power=0.5), MinClip()),
    "mean-in-a-shrinking-band": (PrefixMeanRatio(), LogBand(0.05, 0.05, 0.06, -0.25), MinClip()),
    "mean-in-a-fixed-band": (PrefixMeanRatio(), LogBand(0.02, 0.03), MinClip()),
    "one-sided-weight": (CumulativeRatio(), LogBand(float("inf"), 0.02, power=0.5), StopGradientWeight()),
    "beyond-exp": (CumulativeRatio(), LogBand(50.0, 100.0, None, 0.1), Linear()),
    "linear-growth": (CumulativeRatio(), LogBand(0.01, 0.02, 0.03, 1.0), MinClip()),
    "token-in-a-growing-band": (TokenRatio(), LogBand(0.01, 0.02, 0.03, 0.5), MinClip()),
    "beyond-the-cap": (CumulativeRatio(), LogBand(1.0, 3.0, None, 0.5), MinClip()),
    "weight-without-a-top": (CumulativeRatio(), LogBand(0.1, float("inf")), StopGradientWeight()),
    "dual-only": (CumulativeRatio(), LogBand(float("inf"), float("inf"), 8.0, 0.5), MinClip()),
}


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_other_compositions(name: str) -> None:
    ratio, region, surrogate = COMPOSED[name]
    fast = Objective(ratio=ratio, trust_region=region, surrogate=surrogate)
    definition = Objective(ratio=ratio, trust_region=region, surrogate=surrogate, backend="compose")
    assert objective_refusal(ratio, region, surrogate) is None
    batches = [make(drift=drift, length=25) for drift in (0.05, 1.5, 6.0, 0.05)]
    batches[-1].old -= 12  # beyond what may be exponentiated
    for batch in batches:
        (out, grad), (expected, expected_grad) = run(fast, batch), run(definition, batch)
        same(out, expected, 1e-11)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_other_compositions_of_a_stream(name: str) -> None:
    """Segments that begin with masked tokens, hold nothing else, or hold nothing."""
    parts = dict(zip(("ratio", "trust_region", "surrogate"), COMPOSED[name], strict=True))
    rows = make(rows=1, length=40, drift=0.5)
    rows.mask[0, [0, 1, 5, 20, 21, 22, 23]] = False
    cu = torch.tensor([0, 5, 5, 20, 24, 40])
    advantages = torch.tensor([1.0, 0.5, -0.5, 2.0, -1.0], dtype=torch.float64)
    flat = Batch(rows.logps[0], rows.old[0], advantages, rows.mask[0])
    out, grad = run(Objective(**parts), flat, cu_seqlens=cu)  # type: ignore[arg-type]
    expected, expected_grad = run(Objective(**parts, backend="compose"), flat, cu_seqlens=cu)  # type: ignore[arg-type]
    same(out, expected, 1e-11)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", [*FUSED, *sorted(COMPOSED)])
def test_no_step_of_the_composition_is_not_a_number(name: str) -> None:
    """So that anomaly detection and hooks that look for NaN stay usable."""
    if name in COMPOSED:
        parts = dict(zip(("ratio", "trust_region", "surrogate"), COMPOSED[name], strict=True))
        definition = Objective(**parts, backend="compose")  # type: ignore[arg-type]
    else:
        definition = preset(name, backend="compose")
    batch = make(drift=0.5)
    batch.mask[:, 0] = False
    with Finite():
        run(definition, batch)


class Finite(TorchDispatchMode):
    """Every result of every operation is a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and "empty" not in func.__name__:
                assert not value.isnan().any(), func
        return out


@pytest.mark.parametrize("name", FUSED)
def test_token_loss_carries_the_same_gradient(name: str) -> None:
    batch, grads = make(), []
    weights = torch.linspace(0.5, 2, batch.logps.numel(), dtype=torch.float64).reshape(batch.logps.shape)
    for objective in pair(name):
        logps = batch.logps.clone().requires_grad_()
        out = objective(logps, batch.old, batch.advantages, batch.mask)
        grads += torch.autograd.grad((out.token_loss * weights).sum(), logps, retain_graph=True)
        grads += torch.autograd.grad(2 * out.loss + (out.token_loss * weights).sum(), logps)
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-11, atol=1e-16)
    torch.testing.assert_close(grads[1], grads[3], rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("name", ["ctpo", "cispo", "gspo"])
def test_a_retained_graph_gives_gradients_of_their_own(name: str, backend: str) -> None:
    """The first backward pass is handed what the forward pass left; a second makes its own."""
    if backend == "compile" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("needs a C compiler")
    batch = make()
    _, expected = run(preset(name, backend="compose"), batch)
    logps = batch.logps.clone().requires_grad_()
    loss = preset(name, backend=backend)(logps, batch.old, batch.advantages, batch.mask).loss
    for factor in (3.0, 1.0, 2.0):
        (grad,) = torch.autograd.grad(factor * loss, logps, retain_graph=True)
        torch.testing.assert_close(grad, factor * expected, rtol=1e-11, atol=1e-16)
        grad.fill_(7.0)  # a caller may


@pytest.mark.parametrize("name", ["reinforce", "cispo"])
def test_gradcheck_of_weighted_log_probs(name: str) -> None:
    """Where the weight is a constant, finite differences of the loss see the whole gradient."""
    batch = make(rows=5, length=6)
    knobs = {"ratio_high": 0.0, "ratio_low": 0.0} if name == "cispo" else {}

    def loss(logps: torch.Tensor) -> torch.Tensor:
        return preset(name, **knobs)(logps, batch.old, batch.advantages, batch.mask).loss

    assert torch.autograd.gradcheck(loss, batch.logps.clone().requires_grad_())


@pytest.mark.parametrize("name", ["ctpo-prefix-gradient", "gspo", "grpo"])
@pytest.mark.parametrize("drift", [1e-3, 0.3])
def test_gradcheck(name: str, drift: float) -> None:
    """These differentiate the ratio they weigh with, so finite differences see the whole gradient."""
    batch = make(rows=5, length=6, drift=drift)

    def both(logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = preset(name)(logps, batch.old, batch.advantages, batch.mask)
        return out.loss, out.token_loss

    assert torch.autograd.gradcheck(both, batch.logps.clone().requires_grad_())


def test_gradcheck_of_the_decomposition() -> None:
    """In rows of one token there is no prefix to hold fixed, and ctpo is differentiated exactly."""
    batch = make(rows=5, length=1, drift=0.2)

    def loss(logps: torch.Tensor) -> torch.Tensor:
        return preset("ctpo", log_low=1.0, log_high=1.0)(logps, batch.old, batch.advantages, batch.mask).loss

    assert torch.autograd.gradcheck(loss, batch.logps.clone().requires_grad_())


def test_second_derivatives() -> None:
    """Of a loss that is differentiated exactly, so finite differences of its gradient are the truth."""
    batch = make(rows=4, length=5, drift=0.2)
    objective = preset("grpo", ratio_low=0.9, ratio_high=9.0, ratio_dual=None)

    def loss(logps: torch.Tensor) -> torch.Tensor:
        return objective(logps, batch.old, batch.advantages, batch.mask).loss

    assert torch.autograd.gradgradcheck(loss, batch.logps.clone().requires_grad_())


def test_inputs_are_left_alone() -> None:
    batch = make(drift=0.5)
    before = [x.clone() for x in (batch.logps, batch.old, batch.advantages, batch.mask)]
    run(preset("ctpo"), batch)
    for then, now in zip(before, (batch.logps, batch.old, batch.advantages, batch.mask), strict=True):
        assert torch.equal(then, now)


@pytest.mark.parametrize("ratio", RATIOS)
def test_pullbacks_of_rows_without_tokens_are_numbers(ratio: Any) -> None:
    batch = make()
    batch.mask[:, 0] = False
    tokens = sanitise(batch.logps, batch.old, batch.mask, Padded())
    assert ratio().pullback(tokens, torch.ones_like(batch.logps)).isfinite().all()
