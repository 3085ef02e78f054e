"""Correction of trainer-engine mismatch: weights, rejection, denominators, anchors."""

from __future__ import annotations

import math

import pytest
import torch

from ctpo.objectives import anchor_logps, correct_rollout, preset

from .batches import make, run


def mismatch(scale: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = make(seed=3)
    noise = torch.randn(batch.old.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return batch.old, batch.old - scale * noise, batch.mask


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "reject"])
def test_weights_against_loops(level: str, mode: str) -> None:
    old, rollout, mask = mismatch()
    threshold, floor = 1.5, 0.6
    got = correct_rollout(old, rollout, mask, level=level, mode=mode, threshold=threshold, floor=floor)
    truncated = rejected = tokens = 0
    for i in range(len(old)):
        where = [t for t in range(old.shape[1]) if mask[i, t]]
        deltas = {t: (old[i, t] - rollout[i, t]).item() for t in where}
        for t in where:
            weight = math.exp(sum(deltas.values()) if level == "sequence" else deltas[t])
            out = weight > threshold or weight < floor
            tokens += 1
            truncated += weight > threshold
            rejected += out
            if mode == "truncate":
                assert got.weights[i, t].item() == pytest.approx(min(weight, threshold))
                assert not got.rejection_mask[i, t]
            else:
                assert got.rejection_mask[i, t].item() == out
                if not out:
                    assert got.weights[i, t].item() == pytest.approx(weight)
    assert 0 < truncated < tokens
    assert got.stats["truncated_fraction"].item() == pytest.approx(truncated / tokens * (mode == "truncate"))
    assert got.stats["rejected_fraction"].item() == pytest.approx(rejected / tokens * (mode == "reject"))
    assert not (got.rejection_mask & ~mask).any()


def test_stats_are_divergences_of_engine_from_trainer() -> None:
    old, rollout, mask = mismatch()
    stats = correct_rollout(old, rollout, mask).stats
    d = (old - rollout)[mask]
    assert stats["mismatch_k1"].item() == pytest.approx(-d.mean().item())
    assert stats["mismatch_k3"].item() == pytest.approx((d.exp() - 1 - d).mean().item())


def test_unusable_engine_log_probs_count_as_agreement() -> None:
    old, rollout, mask = mismatch()
    bad = rollout.clone()
    bad[0, int(mask[0].nonzero()[0])] = -torch.inf
    bad[~mask] = torch.nan
    twin = rollout.clone()
    first = int(mask[0].nonzero()[0])
    twin[0, first] = old[0, first]
    got, expected = correct_rollout(old, bad, mask), correct_rollout(old, twin, mask)
    torch.testing.assert_close(got.weights[mask], expected.weights[mask])


def test_a_hopeless_sequence_does_not_overflow() -> None:
    old = torch.zeros(1, 100)
    for sign in (1.0, -1.0):
        for threshold in (5.0, math.inf):
            got = correct_rollout(old, old - sign * 15, torch.ones(1, 100), threshold=threshold)
            assert got.weights.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", "compose"])
def test_weights_scale_token_losses(backend: str) -> None:
    batch = make(drift=0.2)
    weights = correct_rollout(*mismatch()).weights
    plain, plain_grad = run(preset("ctpo", reduction="sum", backend=backend), batch)
    out, grad = run(preset("ctpo", reduction="sum", backend=backend), batch, weights=weights)
    torch.testing.assert_close(out.token_loss, plain.token_loss * weights)
    torch.testing.assert_close(grad, plain_grad * weights)
    assert out.stats["clip_fraction"] == plain.stats["clip_fraction"]
    per_row = torch.linspace(0.5, 2, len(batch.mask), dtype=torch.float64)
    out, _ = run(preset("ctpo", reduction="sum", backend=backend), batch, weights=per_row)
    torch.testing.assert_close(out.token_loss, plain.token_loss * per_row[:, None])


@pytest.mark.parametrize("backend", ["auto", "compose"])
@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_rejection_shrinks_denominators_but_not_prefixes(reduction: str, backend: str) -> None:
    batch = make(drift=0.05)
    rejected = torch.zeros_like(batch.mask)
    rejected[0, ::3] = True
    rejected[5] = True  # a whole row
    objective = preset("ctpo", reduction=reduction, backend=backend)
    out, grad = run(objective, batch, rejection_mask=rejected)
    everything, _ = run(preset("ctpo", reduction="sum", backend=backend), batch)
    counted = batch.mask & ~rejected
    kept = torch.where(counted, everything.token_loss, 0.0)
    torch.testing.assert_close(out.token_loss, kept)
    n, rows = counted.sum(), counted.sum(-1)
    expected = {
        "token-mean": kept.sum() / n,
        "seq-mean-token-mean": (kept.sum(-1) / rows.clamp(min=1)).sum() / (rows > 0).sum(),
        "seq-mean-token-sum": kept.sum() / (rows > 0).sum(),
    }[reduction]
    torch.testing.assert_close(out.loss, expected)
    assert not grad[~counted].any()


def test_anchors() -> None:
    old, rollout = torch.zeros(1), torch.ones(1)
    assert anchor_logps("old", old, None) is old
    assert anchor_logps("rollout", None, rollout) is rollout


def test_no_tokens_are_no_mismatch() -> None:
    old, rollout, mask = mismatch()
    got = correct_rollout(old, rollout, mask & False)
    assert {value.item() for value in got.stats.values()} == {0.0}
    assert got.weights.unique().tolist() == [1.0]
