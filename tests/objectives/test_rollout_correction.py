"""Correction of trainer-engine mismatch: weights, rejection, denominators, anchors."""

from __future__ import annotations

import math

import pytest
import torch

from ctpo.objectives import (
    Gate,
    RolloutCorrection,
    Weight,
    anchor_logps,
    correct_rollout,
    correction_names,
    named_correction,
    preset,
)
from ctpo.objectives.layouts.packed import Packed
from ctpo.objectives.rollout_correction import LEVELS, STATISTICS

from .batches import make, run


def mismatch(scale: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = make(seed=3)
    noise = torch.randn(batch.old.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return batch.old, batch.old - scale * noise, batch.mask


def turns(mask: torch.Tensor) -> torch.Tensor:
    """Turns of uneven length; ids outside the mask are noise."""
    ids = (torch.arange(mask.shape[1]) // 5).expand_as(mask) * 3
    return torch.where(
        mask, ids, torch.randint(-9, 99, mask.shape, generator=torch.Generator().manual_seed(1))
    )


def divergence(statistic: str, old: float, rollout: float) -> float:
    """Of one token, by its formula; the log of "ratio"."""
    delta, p, q = old - rollout, math.exp(old), math.exp(rollout)
    if statistic == "tv":
        return abs(p - q)
    if statistic == "binary_kl":
        p, q = (min(max(x, 1e-6), 1 - 1e-6) for x in (p, q))
        return max(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in ((p, q), (q, p)))
    return {
        "ratio": delta,
        "k1": -delta,
        "k2": delta**2 / 2,
        "k3": math.exp(delta) - 1 - delta,
    }[statistic]


def levels(values: dict[int, float], ids: list[int], level: str) -> dict[int, float]:
    """The statistic of each sampled token of one response at a level."""
    if level == "token":
        return values
    if level == "segment":
        groups = {t: [v for s, v in values.items() if ids[s] == ids[t]] for t in values}
        return {t: math.fsum(group) / len(group) for t, group in groups.items()}
    total = math.fsum(values.values())
    whole = {"sum": total, "mean": total / len(values), "max": max(values.values())}[level]
    return dict.fromkeys(values, whole)


def oracle(
    old: torch.Tensor,
    rollout: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    statistic: str,
    level: str,
) -> dict[tuple[int, int], float]:
    """The statistic of every sampled token (row, position), in plain Python."""
    answer: dict[tuple[int, int], float] = {}
    for i in range(len(old)):
        values = {
            t: divergence(statistic, old[i, t].item(), rollout[i, t].item())
            for t in range(old.shape[1])
            if mask[i, t]
        }
        if values:
            answer |= {(i, t): v for t, v in levels(values, ids[i].tolist(), level).items()}
    return answer


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_gates_against_loops(statistic: str, level: str) -> None:
    old, rollout, mask = mismatch()
    ids = turns(mask)
    expected = oracle(old, rollout, mask, ids, statistic, level)
    ranked = sorted(set(expected.values()))
    low, high = (  # between two values that occur, so that rounding decides nothing
        (ranked[k] + ranked[k + 1]) / 2 for k in (len(ranked) // 5, 3 * len(ranked) // 5)
    )
    bounds = (math.exp(low), math.exp(high)) if statistic == "ratio" else (low, high)
    gate = Gate(statistic, level, *bounds)
    got = correct_rollout(old, rollout, mask, RolloutCorrection(gates=(gate,)), turn_ids=ids)
    out = {at for at, value in expected.items() if not low <= value <= high}
    assert 0 < len(out) < len(expected)
    assert {tuple(at) for at in got.rejected.nonzero().tolist()} == out
    assert not got.rejection_mask.any()  # they stay in the denominators
    assert torch.equal(got.weights, 1.0 - got.rejected.double())
    share = len(out) / len(expected)
    assert got.stats["rejected_fraction"].item() == pytest.approx(share)
    assert got.stats[f"rejected_by_{statistic}_{level}"].item() == pytest.approx(share)
    rows = {i for i, _ in expected}
    assert got.stats["rejected_responses"].item() == pytest.approx(len({i for i, _ in out}) / len(rows))
    kept = correct_rollout(
        old, rollout, mask, RolloutCorrection(gates=(gate,), denominator="kept"), turn_ids=ids
    )
    assert torch.equal(kept.rejection_mask, got.rejected)


@pytest.mark.parametrize("level", ["token", "sum", "mean", "segment"])
def test_weights_against_loops(level: str) -> None:
    old, rollout, mask = mismatch()
    ids, cap, floor = turns(mask), *{"sum": (3.0, 0.3), "mean": (1.05, 0.95)}.get(level, (1.3, 0.8))
    correction = RolloutCorrection(weight=Weight(level, cap, floor))
    got = correct_rollout(old, rollout, mask, correction, turn_ids=ids)
    raw = {at: math.exp(v) for at, v in oracle(old, rollout, mask, ids, "ratio", level).items()}
    for at, weight in raw.items():
        assert got.weights[at].item() == pytest.approx(min(max(weight, floor), cap), rel=1e-12)
    truncated = sum(not floor <= weight <= cap for weight in raw.values())
    assert 0 < truncated < len(raw)
    weights = [min(max(weight, floor), cap) for weight in raw.values()]
    assert got.stats["truncated_fraction"].item() == pytest.approx(truncated / len(raw))
    assert got.stats["weight_mean"].item() == pytest.approx(sum(weights) / len(raw))
    ess = sum(weights) ** 2 / (len(raw) * sum(w * w for w in weights))
    assert got.stats["ess"].item() == pytest.approx(ess)
    assert not got.rejected.any()


def test_parts_combine() -> None:
    """Weight and gates of different levels, several gates and a veto: a token must pass all, and what passes weighs."""
    old, rollout, mask = mismatch()
    rollout[0, int(mask[0].nonzero()[0])] += 12  # e^-12: below the veto, not yet unusable
    rollout[1, int(mask[1].nonzero()[0])] += 30  # unusable, and no token that an engine could have sampled
    old[5, int(mask[5].nonzero()[0])] = -math.inf
    rollout[6, int(mask[6].nonzero()[0])] = -math.inf  # unusable, and the other way round
    correction = RolloutCorrection(
        weight=Weight("token", 1.5),
        gates=(Gate("ratio", "mean", 0.9, 1.2), Gate("k2", "token", high=0.4)),
        veto=1e-4,
    )
    got = correct_rollout(old, rollout, mask, correction)
    alone = [
        correct_rollout(old, rollout, mask, RolloutCorrection(gates=(gate,))).rejected
        for gate in correction.gates
    ]
    assert all(each.any() for each in alone)
    vetoed = torch.zeros_like(mask)
    vetoed[[0, 1, 5]] = mask[[0, 1, 5]]
    assert torch.equal(got.rejected, alone[0] | alone[1] | vetoed)
    assert got.stats["rejected_by_veto"].item() == pytest.approx((vetoed.sum() / mask.sum()).item())
    plain = correct_rollout(old, rollout, mask, RolloutCorrection(weight=Weight("token", 1.5)))
    assert torch.equal(got.weights, torch.where(got.rejected, 0.0, plain.weights))
    assert plain.stats["neutralised"] == 3


NAMED = {
    "recipe": lambda d: (min(math.exp(sum(d)), 5.0), True),
    "none": lambda d: (1.0, True),
    "geo-mask": lambda d: (1.0, 0.99 <= math.exp(sum(d) / len(d)) <= 1.01),
    "trm-max": lambda d: (1.0, max(math.exp(x) - 1 - x for x in d) <= 0.05),
    "trm-avg": lambda d: (1.0, sum(math.exp(x) - 1 - x for x in d) / len(d) <= 0.001),
}
BY_TOKEN = {
    "tis": lambda x, d: (min(math.exp(x), 2.0), True),
    "icepop": lambda x, d: (math.exp(x), 0.5 <= math.exp(x) <= 5.0),
    "seq-mask-tis": lambda x, d: (math.exp(x), 0.999 <= math.exp(sum(d) / len(d)) <= 1.002),
    **{name: lambda x, d, rule=rule: rule(d) for name, rule in NAMED.items()},
}


@pytest.mark.parametrize("name", correction_names())
def test_named_corrections_by_their_formulas(name: str) -> None:
    if name == "custom":
        weight, gates = {"level": "token", "cap": 2.0}, [{"statistic": "k3", "level": "max", "high": 0.1}]
        expected = RolloutCorrection(
            weight=Weight("token", 2.0), gates=(Gate("k3", "max", high=0.1),), veto=0.1
        )
        assert named_correction("custom", weight=weight, gates=gates, veto=0.1) == expected
        return
    scale = {"geo-mask": 0.03, "seq-mask-tis": 0.004, "trm-avg": 0.04, "trm-max": 0.15}.get(name, 0.9)
    old, rollout, mask = mismatch(scale)
    got = correct_rollout(old, rollout, mask, named_correction(name))
    rejected = 0
    for i, row in enumerate(mask):
        where = row.nonzero()[:, 0].tolist()
        deltas = [(old[i, t] - rollout[i, t]).item() for t in where]
        for t, delta in zip(where, deltas, strict=True):
            weight, passes = BY_TOKEN[name](delta, deltas)
            rejected += not passes
            assert got.weights[i, t].item() == pytest.approx(weight * passes, rel=1e-9)
    gates = named_correction(name).gates
    assert (0 < rejected < mask.sum()) == bool(gates)


def test_packed_tokens_are_padded_rows() -> None:
    old, rollout, mask = mismatch()
    ids = turns(mask)
    rows = torch.arange(len(mask))[:, None].expand_as(mask)
    correction = RolloutCorrection(
        weight=Weight("segment"),
        gates=tuple(Gate("k3", level, high=0.3) for level in LEVELS),
        veto=0.3,
    )
    padded = correct_rollout(old, rollout, mask, correction, turn_ids=ids)
    flat = correct_rollout(
        *(x.reshape(-1) for x in (old, rollout, mask)), correction,
        turn_ids=ids.reshape(-1), layout=Packed(rows.reshape(-1)),
    )  # fmt: skip
    assert torch.equal(flat.rejected, padded.rejected.reshape(-1))
    torch.testing.assert_close(flat.weights, padded.weights.reshape(-1), rtol=1e-12, atol=0)
    assert {name: v.item() for name, v in flat.stats.items()} == pytest.approx(
        {name: v.item() for name, v in padded.stats.items()}
    )


def test_sums_are_of_float64() -> None:
    """100,000 equal differences in float32, whose sum in float32 is off by more than its weight allows."""
    length, step = 100_000, 3e-5
    old = torch.full((1, length), -1.0)
    rollout = old - torch.tensor(step)
    mask = torch.ones(1, length, dtype=torch.bool)
    got = correct_rollout(old, rollout, mask, RolloutCorrection(weight=Weight("sum", 1e9)))
    exact = math.exp(math.fsum((old.double() - rollout.double())[0].tolist()))
    assert got.weights[0, 0].item() == pytest.approx(exact, rel=3e-7)


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
        for cap in (5.0, math.inf):
            got = correct_rollout(old, old - sign * 15, torch.ones(1, 100), high=cap)
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
