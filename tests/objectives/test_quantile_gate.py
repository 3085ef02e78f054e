"""The quantile gates against plain sorting, and their smoothing."""

from __future__ import annotations

import math

import pytest
import torch

from ctpo.objectives import preset
from ctpo.objectives.quantile_gate import QuantileGate, Smoothing, upper_quantile

from .batches import Batch, make, run


def threshold(values: list[float], q: float) -> float:
    ranked = sorted(values)
    return ranked[max(math.ceil((1 - q) * len(ranked) - 1e-9), 1) - 1]


@pytest.mark.parametrize("q", [0.0, 0.1, 0.2, 0.45, 0.5, 0.99, 1 - 1e-12])  # 0.55·100 is 55.000…01
@pytest.mark.parametrize("count", [1, 2, 5, 10, 100, 101])
def test_upper_quantile(count: int, q: float) -> None:
    values = torch.randn(count + 5, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    included = torch.arange(count + 5) >= 5
    got = upper_quantile(values, included, q)
    assert got.item() == threshold(values[5:].tolist(), q)


def test_quantile_of_nothing_is_no_bound() -> None:
    assert upper_quantile(torch.zeros(3), torch.zeros(3, dtype=torch.bool), 0.2).item() == math.inf
    assert upper_quantile(torch.zeros(0), torch.zeros(0, dtype=torch.bool), 0.2).item() == math.inf


def loops(batch: Batch, q: float, by_prefix: bool) -> tuple[float, list[list[float]]]:
    """Loss and gradient written out from the equations of docs/reference/preset-sources.md."""
    rows = [[t for t in range(batch.mask.shape[1]) if batch.mask[i, t]] for i in range(len(batch.mask))]
    adv = batch.advantages.tolist()
    sums = []
    for i, where in enumerate(rows):
        total, prefix = 0.0, []
        for t in where:
            total += (batch.logps[i, t] - batch.old[i, t]).item()
            prefix.append(total)
        sums.append(prefix)
    informative = [i for i in range(len(rows)) if adv[i] != 0 and rows[i]]
    if by_prefix:
        longest = max(len(sums[i]) for i in informative)
        at = [[sums[i][k] for i in informative if len(sums[i]) > k] for k in range(longest)]
        rms = [math.sqrt(sum(x * x for x in column) / len(column)) or 1.0 for column in at]
        stats = {i: [abs(c) / rms[k] for k, c in enumerate(sums[i])] for i in informative}
    else:
        stats = {i: [abs(sums[i][-1])] * len(sums[i]) for i in informative}
    tau = threshold([x for i in informative for x in stats[i]], q)
    loss, grad = 0.0, [[0.0] * batch.mask.shape[1] for _ in rows]
    count = sum(1 for where in rows if where)
    for i in informative:
        length = len(rows[i])
        for k, t in enumerate(rows[i]):
            if stats[i][k] > tau:
                continue
            if by_prefix:
                term = -adv[i] * math.exp(sums[i][k]) * length**-0.5 / length / count
                for s in rows[i][: k + 1]:
                    grad[i][s] += term
            else:
                term = -adv[i] * math.exp(sums[i][-1]) / length / count
                grad[i][t] += term
            loss += term
    return loss, grad


@pytest.mark.parametrize("q", [0.0, 0.2, 0.6])
@pytest.mark.parametrize("name", ["sequence-quantile", "prefix-quantile"])
def test_presets_against_loops(name: str, q: float) -> None:
    batch = make(rows=9, drift=0.2, seed=11)
    loss, grad = loops(batch, q, name == "prefix-quantile")
    out, got = run(preset(name, q=q), batch)
    assert out.loss.item() == pytest.approx(loss, rel=1e-11)
    torch.testing.assert_close(got, torch.tensor(grad, dtype=torch.float64), rtol=1e-10, atol=1e-15)


def test_positions_without_drift_count_as_calm() -> None:
    """Where no row has drifted yet the statistic is 0, not 0/0, and has its share in the quantile."""
    batch = make(rows=9, drift=0.2, seed=11)
    batch.old[:, :12] = batch.logps[:, :12]
    loss, grad = loops(batch, 0.4, True)
    out, got = run(preset("prefix-quantile", q=0.4), batch)
    assert out.loss.item() == pytest.approx(loss, rel=1e-11)
    torch.testing.assert_close(got, torch.tensor(grad, dtype=torch.float64), rtol=1e-10, atol=1e-15)


def test_rows_without_advantage_have_no_say() -> None:
    """A wild row of advantage 0 neither moves the quantile nor the scale."""
    for name in ("sequence-quantile", "prefix-quantile"):
        batch = make(rows=9, drift=0.2)
        wild = make(rows=9, drift=0.2)
        wild.old[4] -= 5.0
        assert batch.advantages[4] == 0
        torch.testing.assert_close(run(preset(name), batch)[1], run(preset(name), wild)[1])


def test_smoothing() -> None:
    average = Smoothing(0.75)
    inf = torch.tensor(torch.inf)
    assert average.update(inf).item() == torch.inf
    assert average.update(torch.tensor(2.0)).item() == 2.0
    assert average.update(torch.tensor(6.0)).item() == 3.0
    assert average.update(inf).item() == 3.0


def test_a_smoothed_gate_remembers() -> None:
    """A calm first batch closes the gate for most of a wild second one."""
    calm, wild = make(rows=9, drift=0.01), make(rows=9, drift=0.5)
    fresh, smooth = preset("sequence-quantile"), preset("sequence-quantile", ema=0.99)
    run(smooth, calm)
    gated = run(smooth, wild)[0].stats["clip_fraction"].item()
    assert gated > 0.9 > run(fresh, wild)[0].stats["clip_fraction"].item()


def test_a_gate_may_look_at_another_statistic() -> None:
    """Token weights, gated by accumulated drift: the weight is untouched where the gate is open."""
    import dataclasses

    from ctpo.objectives.ratios import CumulativeRatio
    from ctpo.objectives.surrogates import Gated, MinClip, StopGradientWeight
    from ctpo.objectives.trust_regions import LogBand

    batch = make(drift=0.1)
    d = torch.where(batch.mask, batch.logps - batch.old, 0.0)
    c, adv = d.cumsum(-1), batch.advantages[:, None]
    base = preset("grpo", reduction="sum")
    gate = dataclasses.replace(
        base, surrogate=Gated(), trust_region=QuantileGate(0.3, statistic=CumulativeRatio())
    )
    values = c.abs()[batch.mask & (adv != 0)].tolist()
    tau = threshold(values, 0.3)
    inside = batch.mask & (c.abs() <= tau)
    _, grad = run(gate, batch)
    torch.testing.assert_close(grad, torch.where(inside, -adv * d.exp(), 0.0))

    band = LogBand(0.1, 0.2, 0.3, statistic=CumulativeRatio())
    out, grad = run(dataclasses.replace(base, trust_region=band, surrogate=MinClip()), batch)
    clipped = ((adv > 0) & (c > 0.2)) | ((adv < 0) & ((c < -0.1) | (c > 0.3)))
    torch.testing.assert_close(out.token_loss, torch.where(batch.mask, -adv * d.exp(), 0.0))
    torch.testing.assert_close(grad, torch.where(batch.mask & ~clipped, -adv * d.exp(), 0.0))

    out, grad = run(dataclasses.replace(base, trust_region=band, surrogate=StopGradientWeight()), batch)
    weight = torch.where(c > 0.2, 0.2, torch.where(c < -0.1, -0.1, d)).exp()
    torch.testing.assert_close(grad, torch.where(batch.mask, -adv * weight, 0.0))
