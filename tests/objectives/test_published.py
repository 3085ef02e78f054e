"""Presets of other papers and trainers against loops over tokens, in value and gradient; ties; their own knobs."""

from __future__ import annotations

import ast
import inspect
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctpo.objectives import (
    Objective,
    preset,
    preset_defaults,
    presets_ctpo,
    presets_published,
    turns_of,
)
from ctpo.objectives.divergences import ProbabilityShift
from ctpo.objectives.prefix_budget import PrefixBudget
from ctpo.objectives.ratios import (
    MinPrefixRatio,
    PerTurnRatio,
    PrefixMeanRatio,
    SequenceMeanRatio,
    SequenceRatio,
    TokenRatio,
)
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import Gated, MinClip, StopGradientWeight
from ctpo.objectives.trust_regions import (
    Both,
    BySign,
    LengthBand,
    LogBand,
    OneSided,
    PerTurnRegion,
    RatioBand,
    StatisticBand,
)

from .batches import Batch, make, run, turns
from .published_oracle import PUBLISHED, published_loss

REDUCTIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "sum")
OTHER_KNOBS: dict[str, dict[str, Any]] = {
    "dppo-tv": {"delta_low": 0.01, "delta_high": 0.03},
    "dppo-kl": {"delta_low": 0.001, "delta_high": 0.01},
    "ipo": {"delta": 0.02, "tau": 0.5},
    "kimi": {"tau": 3.0},
    "sapo": {"tau_pos": 0.5, "tau_neg": 2.0},
    "ce-gppo": {"ratio_low": 0.05, "ratio_high": 0.02, "beta_low": 0.0, "beta_high": 0.3},
    "dispo": {"ratio_low_pos": 0.02, "ratio_high_pos": 0.05, "ratio_low_neg": 0.01, "ratio_high_neg": 0.1},
    "aspo": {"ratio_low": 0.05, "ratio_high": 0.02, "ratio_dual": 1.1},
    "opsm": {"delta": 0.005, "ratio_low": 0.05, "ratio_high": 0.02, "ratio_dual": None},
    "cppo": {"delta": 0.05, "w_min": 0.3, "budget": 0.001},
    "gmpo": {"log_low": 0.01, "log_high": 0.05},
    "topr": {"level": "sequence"},
    "vespo": {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 0.5, "lambda_neg": 1.5},
    "ctpo-vespo": {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 0.5, "lambda_neg": 1.5},
    "fspo": {"log_low": 0.1, "log_high": 0.2, "power": 0.25},
    "ctpo-turn": {"log_low": 0.1, "log_high": 0.02, "log_dual": None, "power": 1.0},
    "m2po": {"moment": 0.001, "ratio_low": 0.0, "ratio_high": 0.0},
}


def batch_of(drift: float, seed: int, *, per_token: bool = False, rows: int = 7, length: int = 33) -> Batch:
    """A batch of true log-probs: none is above 0."""
    batch = make(rows, length, drift, seed, per_token=per_token)
    batch.old.clamp_(max=-1e-3)
    batch.logps.clamp_(max=-1e-3)
    return batch


def oracle(name: str, batch: Batch, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The oracle's loss and gradient, in float64."""
    wide = batch.to(torch.float64)
    logps = wide.logps.clone().requires_grad_()
    loss = published_loss(
        name, logps, wide.old, wide.advantages, wide.mask, turns(wide.mask), norm=50.0, **kwargs
    )
    (grad,) = torch.autograd.grad(loss, logps)
    return loss.detach(), grad


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("name", PUBLISHED)
def test_equals_the_oracle(name: str, other: bool) -> None:
    """Ragged rows with holes: one is empty, one has a single token, one has A = 0, as has the middle of every row where
    advantages differ by token. Ratios of a token go up to e^±10.
    """
    knobs = OTHER_KNOBS[name] if other else {}
    for seed, (drift, reduction) in enumerate(
        [(0.01, None), (0.1, None), (0.1, "seq-mean-token-sum-norm"), (0.6, "sum"), (3.0, None)]
    ):
        batch = batch_of(drift, seed, per_token=seed in (1, 3), length=17)
        loss, grad = oracle(name, batch, reduction=reduction, **knobs)
        chosen = {} if reduction is None else {"reduction": reduction}
        out, got = run(preset(name, norm_length=50.0, **chosen, **knobs), batch)
        torch.testing.assert_close(out.loss, loss, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(got, grad, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_knobs_are_all_knobs(name: str) -> None:
    shared = {"reduction", "norm_length", "on_bad", "backend", "ema", "across_ranks"}
    assert OTHER_KNOBS[name].keys() == preset_defaults(name).keys() - shared


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:log-probs arrived in")
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    """The same loss of the same rounded numbers, to the rounding of float32."""
    batch = batch_of(0.3, 5).to(dtype)
    loss, grad = oracle(name, batch)
    out, got = run(preset(name), batch)
    assert out.loss.dtype == torch.float32
    torch.testing.assert_close(out.loss, loss.float(), rtol=2e-5, atol=1e-6)
    precision = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got, grad.to(dtype), rtol=precision, atol=1e-7)


def one_row(old: list[float], logps: list[float], advantage: float) -> Batch:
    def row(values: list[float]) -> Tensor:
        return torch.tensor([values], dtype=torch.float64)

    return Batch(row(logps), row(old), torch.tensor([advantage]).double(), torch.ones(1, len(old)).bool())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ties_are_kept(sign: float) -> None:
    """A token exactly at its bound counts; a bound one step nearer drops it."""
    batch = one_row([-1.0, -1.2], [-1.0 + sign * 0.3, -1.2 + sign * 0.2], sign)
    shift = (batch.logps.exp() - batch.old.exp()).abs()
    first, largest = shift[0, 0].item(), shift.max().item()
    mean = (batch.logps - batch.old).mean().abs().item()
    cases = {
        "dppo-tv": ({"delta_low": largest, "delta_high": largest}, ("delta_low", "delta_high")),
        "ipo": ({"delta": largest, "tau": 0.0}, ("delta",)),
        "cppo": ({"delta": first, "budget": 10.0, "w_min": 0.0}, ("delta",)),
        "opsm": ({"delta": mean, "ratio_high": 9.0, "ratio_low": 0.9}, ("delta",)),
    }
    for name, (knobs, bounds) in cases.items():
        if name == "opsm" and sign > 0:
            continue
        tighter = knobs | {bound: math.nextafter(knobs[bound], 0) for bound in bounds}
        kept, dropped = (run(preset(name, **each), batch)[1] for each in (knobs, tighter))
        assert (kept != 0).all(), name
        assert (dropped == 0).any(), name


def test_nobody_pays_for_the_way_back() -> None:
    """A token that moves against its advantage keeps its gradient, however far it and its prefix have moved."""
    batch = one_row([-0.1, -0.1, -0.1], [-3.0, -3.0, -3.0], 1.0)
    for name in ("dppo-tv", "dppo-kl", "cppo", "opsm"):
        assert (run(preset(name), batch)[1] != 0).all(), name
    assert (run(preset("ipo", tau=0.0), batch)[1] == 0).all()


def test_what_a_gate_drops_stays_in_the_denominators() -> None:
    batch = batch_of(0.3, 2)
    batch.old[0] = batch.logps[0] + 1.0
    batch.advantages[:2] = torch.tensor([-1.0, 1.0])
    out, grad = run(preset("opsm"), batch)
    plain, plain_grad = run(preset("grpo"), batch)
    assert (grad[0] == 0).all()
    assert (out.token_loss[0] == 0).all()
    torch.testing.assert_close(grad[1:], plain_grad[1:])
    assert out.stats["sequences"] == plain.stats["sequences"]
    dropped = batch.mask[0].sum() / batch.mask.sum()
    below = out.stats["clip_fraction_low"] - (plain.stats["clip_fraction_low"])
    clipped_before = (preset("grpo").examine(*vars(batch).values()).clip[0] == -1).sum() / batch.mask.sum()
    assert below.item() == pytest.approx((dropped - clipped_before).item())


def test_clip_fractions_of_a_gate() -> None:
    """By the sign of the advantage: above with A > 0, below with A < 0, and none with A = 0."""
    batch = batch_of(0.5, 3)
    shift = batch.logps.exp() - batch.old.exp()
    a = batch.advantages[:, None].expand_as(shift)
    out, _ = run(preset("dppo-tv", delta_low=0.05, delta_high=0.1), batch)
    n = batch.mask.sum()
    high = (batch.mask & (a > 0) & (shift > 0.1)).sum() / n
    low = (batch.mask & (a < 0) & (shift < -0.05)).sum() / n
    assert out.stats["clip_fraction_high"].item() == pytest.approx(high.item())
    assert out.stats["clip_fraction_low"].item() == pytest.approx(low.item())
    assert min(high, low) > 0


@pytest.mark.parametrize("name", ["ipo", "kimi"])
def test_a_pull_is_weighted_and_not_paid_by_rejected_tokens(name: str) -> None:
    batch = batch_of(0.2, 4)
    batch.advantages.zero_()
    rejected = batch.mask & (batch.logps < -2)
    weights = torch.linspace(0, 2, len(batch.mask), dtype=torch.float64)
    objective = preset(name, reduction="sum", tau=1.0)
    _, grad = run(objective, batch, weights=weights, rejection_mask=rejected)
    counted = batch.mask & ~rejected
    d = batch.logps - batch.old
    torch.testing.assert_close(grad, torch.where(counted, weights[:, None] * d, 0.0))
    assert not objective.idle_without_advantage
    assert preset("grpo").idle_without_advantage


def test_neutralised_tokens_move_nothing() -> None:
    """A token without log-prob counts as a position, with d = 0 and π = μ."""
    for name in PUBLISHED:
        batch = batch_of(0.2, 6)
        where = batch.mask.nonzero()[::7].T.unbind()
        calm = Batch(batch.logps, batch.old.clone(), batch.advantages, batch.mask)
        calm.old[where] = batch.logps[where]
        batch.old[where] = math.nan
        bad, grad = run(preset(name, reduction="sum"), batch)
        good, expected = run(preset(name, reduction="sum"), calm)
        expected[where] = 0.0
        at = torch.zeros_like(batch.mask)
        at[where] = True
        if name not in ("gmpo", "fspo"):  # the losses of other tokens reach a calm token through the mean
            torch.testing.assert_close(grad, expected, msg=name)
        torch.testing.assert_close(bad.token_loss[~at], good.token_loss[~at], msg=name)


def test_rejected_tokens_are_clipped_inside_of_the_mean() -> None:
    """What was rejected leaves the loss, and stays in the mean as the advantage of its response has it."""
    batch = batch_of(0.5, 8, rows=2)
    rejected = batch.mask & (torch.arange(33) % 3 == 0)
    whole, _ = run(preset("gmpo", reduction="sum"), batch)
    part, _ = run(preset("gmpo", reduction="sum"), batch, rejection_mask=rejected)
    expected = torch.where(rejected, 0.0, whole.token_loss)
    torch.testing.assert_close(part.token_loss, expected)


@pytest.mark.parametrize("name", ["ctpo-turn"])
def test_turns(name: str) -> None:
    """One turn per response is ctpo; turns as rows of their own are the same as turns of one row."""
    batch = batch_of(0.1, 9, length=32)
    one, grad = run(preset(name), batch, turn_ids=torch.zeros(7, 32, dtype=torch.long))
    ctpo, ctpo_grad = run(preset("ctpo"), batch)
    torch.testing.assert_close(one.loss, ctpo.loss)
    torch.testing.assert_close(grad, ctpo_grad)
    split = Batch(
        *(x.reshape(28, 8) for x in (batch.logps, batch.old)),
        batch.advantages.repeat_interleave(4),
        batch.mask.reshape(28, 8),
    )
    rows, rows_grad = run(preset("ctpo"), split)
    ids = (torch.arange(32) // 8).expand(7, 32)
    several, several_grad = run(preset(name), batch, turn_ids=ids)
    torch.testing.assert_close(several.loss, rows.loss)
    torch.testing.assert_close(several_grad, rows_grad.reshape(7, 32))
    details = preset(name).examine(*vars(batch).values(), turn_ids=ids)
    assert torch.equal(details.clip.reshape(28, 8), preset("ctpo").examine(*vars(split).values()).clip)


PER_TURN: dict[str, tuple[Any, Any, Any]] = {
    "segment mean": (SequenceMeanRatio("through"), RatioBand(0.02, 0.02), MinClip()),
    "segment product": (SequenceRatio(), LengthBand(0.05, 0.05), MinClip()),
    "prefix minimum": (MinPrefixRatio(), RatioBand(0.2, 0.2), StopGradientWeight()),
    "prefix mean": (PrefixMeanRatio("through"), LogBand(0.05, 0.05, None, -0.5), MinClip()),
    "prefix budget": (TokenRatio(), OneSided(PrefixBudget(0.02, 0.5, 0.001)), Gated()),
    "gate": (TokenRatio(), LogBand(0.01, 0.01, statistic=SequenceMeanRatio()), Gated()),
}


@pytest.mark.parametrize("name", PER_TURN)
def test_any_part_per_turn(name: str) -> None:
    """Turns of a row are what rows of those tokens are, in value, gradient and clipping."""
    ratio, region, surrogate = PER_TURN[name]
    batch = batch_of(0.1, 9, length=32)
    split = Batch(
        *(x.reshape(28, 8) for x in (batch.logps, batch.old)),
        batch.advantages.repeat_interleave(4),
        batch.mask.reshape(28, 8),
    )
    whole = Objective(ratio=ratio, trust_region=region, surrogate=surrogate, reduction=Reduction("sum"))
    per_turn = replace(whole, ratio=PerTurnRatio(ratio), trust_region=PerTurnRegion(region))
    expected, expected_grad = run(whole, split)
    ids = (torch.arange(32) // 8 + 5).expand(7, 32)
    out, grad = run(per_turn, batch, turn_ids=ids)
    torch.testing.assert_close(out.token_loss.reshape(28, 8), expected.token_loss)
    torch.testing.assert_close(grad.reshape(28, 8), expected_grad)
    assert out.stats["clip_fraction"] == expected.stats["clip_fraction"] > 0
    flat = Batch(*(x.reshape(-1) for x in (batch.logps, batch.old)), batch.advantages, batch.mask.reshape(-1))
    rows = torch.arange(7).repeat_interleave(32)
    packed, packed_grad = run(per_turn, flat, turn_ids=ids.reshape(-1), segment_ids=rows)
    torch.testing.assert_close(packed.loss, out.loss)
    torch.testing.assert_close(packed_grad, grad.reshape(-1))


def test_turns_of_a_mask() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 1, 1]])
    expected = torch.tensor([[-1, 0, 0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 1, 1]])
    assert torch.equal(turns_of(mask), expected)
    assert torch.equal(turns_of(mask.bool())[:, :0], expected[:, :0])


def test_turns_end_where_numbers_change() -> None:
    """They need not rise, begin at 0 or be dense, and what lies outside of the mask may be anything."""
    batch = batch_of(0.1, 9, length=32)
    ids = turns(batch.mask)
    odd = torch.where(batch.mask, torch.tensor([3, -8, 40, 7, 2, 11, -1, 5])[ids.clamp(min=0)], 99)
    expected, got = (run(preset("ctpo-turn"), batch, turn_ids=x) for x in (ids, odd.to(torch.int32)))
    assert torch.equal(got[1], expected[1])


def test_gates_within_gates() -> None:
    """A token must be inside of every gate, on either side of a pair by sign, and obeys the innermost region."""
    batch = batch_of(0.3, 3, rows=20)
    token, mean = (LogBand(0.3, 0.3, statistic=statistic) for statistic in (TokenRatio(), PrefixMeanRatio()))
    shift = StatisticBand(0.05, 0.05, ProbabilityShift())
    band = RatioBand(0.1, 0.1, 1.2)
    d = torch.where(batch.mask, batch.logps - batch.old, 0.0)
    count = batch.mask.cumsum(-1).clamp(min=1)
    inside = {
        "token": d.abs() <= 0.3,
        "mean": (d.cumsum(-1) / count).abs() <= 0.3,
        "shift": (batch.logps.exp() - batch.old.exp()).abs() <= 0.05,
    }
    harm = batch.advantages[:, None] < 0
    cases = {
        "nested": (
            Both(Both(band, token), Both(shift, mean)),
            inside["token"] & inside["mean"] & inside["shift"],
        ),
        "by sign": (
            BySign(Both(band, token), Both(band, mean)),
            torch.where(harm, inside["mean"], inside["token"]),
        ),
        "one side": (BySign(band, Both(band, token)), ~harm | inside["token"]),
        "below one": (OneSided(Both(band, token)), inside["token"]),
    }
    plain = Objective(ratio=TokenRatio(), trust_region=band, surrogate=MinClip(), reduction=Reduction("sum"))
    free, free_grad = run(plain, batch)
    for name, (region, kept) in cases.items():
        out, grad = run(replace(plain, trust_region=region), batch)
        torch.testing.assert_close(out.token_loss, torch.where(kept, free.token_loss, 0.0), msg=name)
        torch.testing.assert_close(grad, torch.where(kept, free_grad, 0.0), msg=name)
        gone = (batch.mask & ~kept).sum()
        assert gone > 10, name
        assert (out.stats["clip_fraction"] * out.stats["tokens"]).item() >= gone.item() - 1e-9, name


def test_regions_by_sign_on_statistics() -> None:
    """Each sign may look at another statistic, and only one may have a dual bound."""
    batch = batch_of(0.3, 3)
    gain, harm = StatisticBand(0.02, 0.02, ProbabilityShift()), RatioBand(0.1, 0.1, 1.2)
    objective = Objective(
        ratio=TokenRatio(), trust_region=BySign(gain, harm), surrogate=MinClip(), reduction=Reduction("sum")
    )
    _, grad = run(objective, batch)
    negative = batch.advantages < 0
    for part, rows in ((gain, ~negative), (harm, negative)):
        _, expected = run(replace(objective, trust_region=part), batch)
        torch.testing.assert_close(grad[rows], expected[rows])


def test_lines_in_the_docs() -> None:
    """The table counts the lines of a function without its signature and its docstring."""
    table = (Path(__file__).parents[2] / "docs" / "reference" / "preset-sources.md").read_text()
    counted = dict(re.findall(r"^\| `([a-z0-9-]+)` \|.*\| (\d+) \|$", table, re.MULTILINE))
    assert counted.keys() == PUBLISHED.keys() | {"lusp"}
    for module in (presets_ctpo, presets_published):
        for function in ast.parse(inspect.getsource(module)).body:
            if isinstance(function, ast.FunctionDef) and (name := function.name.replace("_", "-")) in counted:
                first, last = function.body[1].lineno, function.body[-1].end_lineno
                assert last is not None
                assert last - first + 1 == int(counted.pop(name)), name
    assert not counted
