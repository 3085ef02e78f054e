"""Identities that hold for every objective, over generated batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctpo.objectives import preset, preset_names
from ctpo.objectives.layouts.packed import packed_from
from ctpo.objectives.quantile_gate import QuantileGate
from ctpo.objectives.reductions import REDUCTIONS
from ctpo.objectives.surrogates import ceiling_of
from ctpo.objectives.trust_regions import Bound, Limits, LogBand

from .batches import Batch, make, run, same

NAMES = st.sampled_from(preset_names())
EACH = pytest.mark.parametrize("name", preset_names())
BACKENDS = st.sampled_from(["auto", "compose"])
KINDS = st.sampled_from(sorted(REDUCTIONS))
FEW = settings(max_examples=60, deadline=None, derandomize=True)
FEW_EACH = settings(max_examples=6, deadline=None, derandomize=True)

batches = st.builds(
    make,
    rows=st.integers(1, 8),
    length=st.integers(1, 24),
    drift=st.sampled_from([0.003, 0.05, 0.3, 2.0]),
    seed=st.integers(0, 10**6),
    per_token=st.booleans(),
)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@EACH
@FEW_EACH
@given(batches, BACKENDS, KINDS)
def test_masked_equals_filtered(name: str, batch: Batch, backend: str, kind: str) -> None:
    """Squeezing masked tokens out, and padding each row anew at the end, changes nothing."""
    out, grad = run(preset(name, backend=backend, reduction=kind), batch)
    order = (~batch.mask).to(torch.int8).argsort(dim=-1, stable=True)
    # Hostile padding: what is masked out must not matter.
    mask = batch.mask.gather(1, order)
    nan = torch.full_like(batch.logps, torch.nan)

    def squeeze(x: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, x.gather(1, order), fill) if x.ndim == 2 else x

    small = Batch(squeeze(batch.logps, nan), squeeze(batch.old, nan), squeeze(batch.advantages, nan), mask)
    filtered, filtered_grad = run(preset(name, backend=backend, reduction=kind), small)
    close(out.loss, filtered.loss)
    close(torch.where(mask, grad.gather(1, order), 0.0), filtered_grad)
    for key, value in out.stats.items():
        assert value.item() == pytest.approx(filtered.stats[key].item(), rel=1e-8, abs=1e-12), key


@EACH
@FEW_EACH
@given(batches, KINDS, st.booleans())
def test_padded_equals_packed(name: str, batch: Batch, kind: str, by_ids: bool) -> None:
    objective = preset(name, reduction=kind, backend="compose")
    out, grad = run(objective, batch)
    rows, length = batch.logps.shape
    # Drop some trailing padding, so that segments differ in length and some are empty.
    used = torch.where(batch.mask, torch.arange(1, length + 1), 0).amax(-1)
    inside = torch.arange(length) < used[:, None]
    cu = torch.cat([torch.zeros(1, dtype=torch.long), used.cumsum(0)])
    ids = torch.arange(rows)[:, None].expand(rows, length)[inside]
    advantages = batch.advantages if batch.advantages.ndim == 1 else batch.advantages[inside]
    if advantages.shape[0] == ids.shape[0]:
        advantages = (
            batch.advantages.expand(length, rows).T[inside] if batch.advantages.ndim == 1 else advantages
        )
    packed = Batch(batch.logps[inside], batch.old[inside], advantages, batch.mask[inside])
    packing: dict[str, Any] = {"segment_ids": ids} if by_ids else {"cu_seqlens": cu}
    stream, stream_grad = run(objective, packed, **packing)
    close(out.loss, stream.loss)
    close(grad[inside], stream_grad)
    close(out.token_loss[inside], stream.token_loss)
    for key, value in out.stats.items():
        assert value.item() == pytest.approx(stream.stats[key].item(), rel=1e-8, abs=1e-12), key


@FEW
@given(batches, NAMES, BACKENDS, KINDS)
def test_row_order_does_not_matter(batch: Batch, name: str, backend: str, kind: str) -> None:
    order = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(1))
    objective = preset(name, backend=backend, reduction=kind)
    (out, grad), (other, other_grad) = run(objective, batch), run(objective, batch.rows(order))
    close(out.loss, other.loss)
    close(grad[order], other_grad)


@FEW
@given(batches, NAMES, BACKENDS, st.sampled_from([1e-3, 0.5, 7.0]))
def test_loss_is_homogeneous_in_the_advantages(batch: Batch, name: str, backend: str, factor: float) -> None:
    objective = preset(name, backend=backend)
    if not objective.idle_without_advantage:
        return  # a pull to the anchor does not scale with the advantage
    (out, grad) = run(objective, batch)
    scaled = dataclasses.replace(batch, advantages=factor * batch.advantages)
    other, other_grad = run(objective, scaled)
    close(factor * out.loss, other.loss)
    close(factor * grad, other_grad)
    assert out.stats["clip_fraction"] == other.stats["clip_fraction"]


@EACH
@FEW_EACH
@given(batches, BACKENDS, KINDS, st.integers(1, 3))
def test_explicit_counts_make_accumulation_exact(
    name: str, batch: Batch, backend: str, kind: str, pieces: int
) -> None:
    objective = preset(name, backend=backend, reduction=kind)
    if not objective.row_wise:
        return  # what a micro-batch shows is not what the minibatch shows; see test_quantile_gate
    out, grad = run(objective, batch)
    counts = {"num_tokens": batch.mask.sum(), "num_sequences": int(batch.mask.any(-1).sum())}
    parts = [run(objective, batch.rows(i), **counts) for i in torch.arange(len(batch.mask)).chunk(pieces)]
    close(out.loss, torch.stack([part.loss for part, _ in parts]).sum())
    close(grad, torch.cat([g for _, g in parts]))


@FEW
@given(batches, KINDS, st.floats(0.01, 0.9), st.floats(0.01, 2.0))
def test_a_fixed_log_band_on_token_ratios_is_grpo(batch: Batch, kind: str, low: float, high: float) -> None:
    """The same band, said in log space and in ratio space, is the same objective."""
    from ctpo.objectives.trust_regions import LogBand

    grpo = preset("grpo", ratio_low=low, ratio_high=high, ratio_dual=3.0, reduction=kind)
    logs = torch.log(torch.tensor([1 - low, 1 + high, 3.0], dtype=torch.float64)).tolist()
    band = LogBand(-logs[0], logs[1], logs[2])
    (out, grad), (other, other_grad) = (
        run(grpo, batch),
        run(dataclasses.replace(grpo, trust_region=band), batch),
    )
    same(out, other, 1e-12)
    close(grad, other_grad)


@FEW
@given(st.integers(1, 6), st.integers(0, 10**6), st.sampled_from([0.01, 0.3]))
def test_rows_of_one_token_make_ctpo_grpo(rows: int, seed: int, drift: float) -> None:
    """With equal bands: a prefix of one token is that token."""
    batch = make(rows, 1, drift, seed)
    logs = torch.log(torch.tensor([0.8, 1.28, 3.0], dtype=torch.float64)).tolist()
    ctpo = preset("ctpo", log_low=-logs[0], log_high=logs[1], log_dual=logs[2])
    grpo = preset("grpo", ratio_low=0.2, ratio_high=0.28, ratio_dual=3.0, reduction="token-mean")
    (out, grad), (other, other_grad) = run(ctpo, batch), run(grpo, batch)
    close(out.loss, other.loss)
    close(grad, other_grad)


SUMS = ("prefix-quantile", "ctpo-prefix-gradient", "fspo")
"""Their gradient runs through a sum, which counts a token several times."""
ON_POLICY = [n for n in preset_names() if n not in SUMS]


@FEW
@given(batches, st.sampled_from(ON_POLICY), BACKENDS, st.sampled_from(["token-mean", "seq-mean-token-mean"]))
def test_on_policy_gradient_is_reinforce(batch: Batch, name: str, backend: str, kind: str) -> None:
    """When the anchor is the policy itself every ratio is 1 and nothing is clipped."""
    if batch.advantages.ndim == 2:
        batch.advantages = batch.advantages[:, 0]  # gspo spreads per-token advantages over the row
    batch.old = batch.logps.clone()
    _, expected = run(preset("reinforce", reduction=kind), batch)
    out, grad = run(preset(name, backend=backend, reduction=kind), batch)
    close(grad, expected)
    assert out.stats["clip_fraction"].item() == 0
    assert out.stats["ess"].item() == pytest.approx(1.0 if batch.mask.any() else 0.0)


def test_ratios_of_one_make_all_families_agree() -> None:
    batch = make(drift=0.0)
    grads = {
        name: run(preset(name, reduction="token-mean"), batch)[1]
        for name in ON_POLICY
        if "quantile" not in name
    }
    for grad in grads.values():
        close(grad, grads["reinforce"])


def test_through_the_prefix_sums_the_rest_of_the_row_on_policy() -> None:
    """At ratio 1 token s collects −A/N from each t ≥ s."""
    batch = make(drift=0.0)
    _, grad = run(preset("ctpo-prefix-gradient"), batch)
    left = batch.mask.flip(-1).cumsum(-1).flip(-1)
    expected = torch.where(batch.mask, -batch.advantages[:, None] * left / batch.mask.sum(), 0.0)
    close(grad, expected)


def test_quantile_of_nothing_left_out_is_the_plain_sequence_weight() -> None:
    batch = make(drift=0.02)
    gated = preset("sequence-quantile", q=0.0)
    assert isinstance(gated.trust_region, QuantileGate)
    wide = preset("sequence", ratio_low=1.0, ratio_high=1e6, ratio_dual=None)
    close(run(gated, batch)[1], run(wide, batch)[1])


@pytest.mark.parametrize("upper", [12.0, torch.tensor([9.0, 12.0, 90.0]), float("inf")])
@pytest.mark.parametrize("dual", [11.0, torch.tensor([13.0, 8.0, 8.0]), None])
def test_the_ceiling_is_above_every_bound_and_below_what_may_be_exponentiated(
    upper: Bound, dual: Bound | None
) -> None:
    got = torch.as_tensor(ceiling_of(Limits(-1.0, upper, dual, None), 10.0)).expand(3)
    for i in range(3):
        bounds = [float(b[i]) if isinstance(b, torch.Tensor) else b for b in (upper, dual) if b is not None]
        assert got[i].item() == min(max([10.0, *(b for b in bounds if b != float("inf"))]), 80.0)


@pytest.mark.parametrize("reduction", sorted(REDUCTIONS))
def test_values_are_reduced_as_the_loss_is_also_of_a_stream(reduction: str) -> None:
    rows = make(rows=1, length=30)
    cu = torch.tensor([0, 4, 19, 30])
    flat = Batch(
        rows.logps[0], rows.old[0], torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64), rows.mask[0]
    )
    objective = preset("ctpo", reduction=reduction)
    out, _ = run(objective, flat, cu_seqlens=cu)
    got = objective.reduce(out.token_loss.detach(), flat.mask, layout=packed_from(cu, 30, 3))
    torch.testing.assert_close(got, out.loss.detach(), rtol=1e-12, atol=0.0)


def test_the_dual_bound_can_be_left_out() -> None:
    for name, off in (
        ("ctpo", {"log_dual": None}),
        ("ctpo-fixed-matched", {"log_dual": None}),
        ("ctpo-calibrated", {"dual": False}),
    ):
        with_one, without = preset(name).trust_region, preset(name, **off).trust_region
        assert isinstance(with_one, LogBand)
        assert isinstance(without, LogBand)
        assert (with_one.log_dual, without.log_dual) == (with_one.log_high, None)
