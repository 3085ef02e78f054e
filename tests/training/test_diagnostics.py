"""The records of drift and clipping, compared with loops, autograd and the objective's own calls."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.objectives import Objective, preset, preset_names, turns_of
from ctpo.objectives.clipped_mean import ClippedMeanRatio
from ctpo.objectives.numerics import LOG_WEIGHT_CAP
from ctpo.objectives.ratios import CumulativeRatio, SequenceMeanRatio, SequenceRatio
from ctpo.objectives.soft_surrogates import Pulled
from ctpo.objectives.surrogates import Linear, StopGradientWeight
from ctpo.objectives.trust_regions import Unbounded
from ctpo.training.diagnostics.drift import EngineDrift
from ctpo.training.diagnostics.profile import BINS, CELL_EDGES, PositionProfile, ProfileSums, position_edges
from ctpo.training.diagnostics.record import profile_figures, profile_line
from ctpo.training.diagnostics.samples import pieces

sys.path.insert(0, str(Path(__file__).parent.parent / "objectives"))
from batches import Batch, make

LONGEST = 33


NARROW: dict[str, dict[str, float]] = {
    "dppo-tv": {"delta_low": 0.01, "delta_high": 0.01},
    "ipo": {"delta": 0.02},
    "cppo": {"delta": 0.02, "budget": 0.001},
    "opsm": {"delta": 0.02},
    "dispo": {f"ratio_{side}": 0.1 for side in ("low_pos", "high_pos", "low_neg", "high_neg")},
    "m2po": {"moment": 0.003, "ratio_low": 0.0, "ratio_high": 0.0},
}
"""Knobs for a batch that drifts by 0.1 nats per token."""
NO_BOUNDS = ("reinforce", "kimi", "sapo", "vespo", "ctpo-vespo")
FADING = ("sapo", "vespo", "ctpo-vespo")
"""They have no bounds, and take a part of the gradient all the same."""


class OneProcess:
    """An accelerator of one process, with only what gathering needs."""

    device = torch.device("cpu")

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        return values


def objective_named(name: str) -> Objective:
    """The preset, with a band that clips some tokens of a batch that drifts by 0.1 nats per token."""
    if name == "ctpo-fixed-matched":
        return preset(name, length=LONGEST)
    if name == "ctpo-calibrated":
        return preset(name, scale=0.1)
    widths = {"gspo": 0.005, "gspo-token": 0.005, "ctpo-geomean": 0.02, "ctpo-fixed": 0.2}
    widths |= dict.fromkeys(("cispo", "minpro", "grpo", "ppo", "dapo", "dr-grpo"), 0.1)
    widths |= {"gmpo": 0.05, "fspo": 0.02, "opsm": 0.1, "ce-gppo": 0.1}
    unit = "log" if name.startswith("ctpo") or name in ("gmpo", "fspo") else "ratio"
    knobs = {f"{unit}_{side}": widths[name] for side in ("low", "high") if name in widths}
    return preset(name, **knobs, **NARROW.get(name, {}))


def profile_of(objective: Objective, *batches: Batch) -> ProfileSums:
    profile = PositionProfile(lambda: objective, LONGEST)
    for batch in batches:
        profile.add(batch.logps, batch.old, batch.advantages, batch.mask)
    sums = profile.close(OneProcess())
    assert sums is not None
    return sums


def tokens_of(batch: Batch) -> list[tuple[int, int, int, float]]:
    """(row, column, t, c_t) of the tokens that count, from a loop."""
    tokens = []
    for row in range(len(batch.logps)):
        t, c = 0, 0.0
        for column in range(batch.logps.shape[1]):
            if batch.mask[row, column]:
                t, c = t + 1, c + float(batch.logps[row, column] - batch.old[row, column])
                if batch.advantages[row] != 0:
                    tokens.append((row, column, t, c))
    return tokens


@pytest.mark.parametrize("name", preset_names())
def test_profile_equals_loops_and_autograd(name: str) -> None:
    """Clips come from the objective's own call, the removed gradient from autograd with and without trust region."""
    objective, batch = objective_named(name), make(rows=40, length=LONGEST, drift=0.1)
    line = profile_line(profile_of(objective, batch), objective)
    ratio = objective.ratio  # the slope in the token alone, without the gradient through its prefix
    if isinstance(ratio, (CumulativeRatio, SequenceRatio, SequenceMeanRatio)):
        ratio = replace(ratio, gradient="token")
    surrogate = objective.surrogate  # without the pull, which no region limits
    surrogate = surrogate.surrogate if isinstance(surrogate, Pulled) else surrogate
    free = StopGradientWeight() if isinstance(surrogate, StopGradientWeight) else Linear()
    local = replace(objective, ratio=ratio, surrogate=surrogate, backend="compose")

    def slopes(which: Objective) -> Any:
        logps = batch.logps.clone().requires_grad_()
        ids = turns_of(batch.mask)
        out = which(logps, batch.old, batch.advantages, batch.mask, turn_ids=ids, details=True)
        (gradient,) = torch.autograd.grad(out.token_loss.sum(), logps)
        return gradient.abs(), out.details

    kept, details = slopes(local)
    whole, _ = slopes(replace(local, surrogate=free, trust_region=Unbounded()))
    if isinstance(ratio, ClippedMeanRatio):  # it clips without the help of a surrogate
        whole = batch.advantages[:, None].abs() * details.log_weight.exp()
    assert (details.log_weight < LOG_WEIGHT_CAP).all()
    bins: list[list[tuple[int, int, int, float]]] = [[] for _ in line["edge"]]
    for token in tokens_of(batch):
        bins[next(i for i, edge in enumerate(line["edge"]) if token[2] <= edge)].append(token)
    for i, tokens in enumerate(bins):
        assert line["count"][i] == len(tokens)
        if not tokens:
            assert line["log_ratio_mean"][i] is None
            continue
        n, c = len(tokens), [token[3] for token in tokens]
        x = [float(details.log_weight[row, column]) for row, column, _, _ in tokens]
        codes = [int(details.clip[row, column]) for row, column, _, _ in tokens]
        assert [line[key][i] for key in ("high", "low", "dual")] == [codes.count(code) for code in (1, -1, 2)]
        assert line["position_mean"][i] == pytest.approx(sum(token[2] for token in tokens) / n, rel=1e-6)
        for key, values in (("log_ratio", c), ("weight", x)):
            mean = math.fsum(values) / n
            assert line[f"{key}_mean"][i] == pytest.approx(mean, rel=1e-5, abs=1e-9)
            std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / n)
            assert line[f"{key}_std"][i] == pytest.approx(std, rel=1e-5, abs=1e-7)
        before = math.fsum(float(whole[row, column]) for row, column, _, _ in tokens)
        lost = math.fsum(max(float(whole[r, q] - kept[r, q]), 0.0) for r, q, _, _ in tokens)
        assert line["gradient_removed_weighted"][i] == pytest.approx(lost / before, rel=1e-5, abs=1e-7)
        size = [abs(float(batch.advantages[row])) for row, _, _, _ in tokens]
        share = [max(1 - float(kept[r, q] / whole[r, q]), 0.0) for r, q, _, _ in tokens]
        gain = [float(batch.advantages[row]) > 0 for row, _, _, _ in tokens]
        for key, sides in (("", (True, False)), ("_gain", (True,)), ("_harm", (False,))):
            chosen = [(a, a * s) for a, s, up in zip(size, share, gain, strict=True) if up in sides]
            whole_size, part = (math.fsum(each) for each in zip(*chosen, strict=True)) if chosen else (0, 0)
            removed = pytest.approx(part / whole_size, rel=1e-5, abs=1e-7) if whole_size else None
            assert line[f"gradient_removed{key}"][i] == removed, key
        codes_by_side = [
            [c != 0 for c, up in zip(codes, gain, strict=True) if up is side] for side in (True, False)
        ]
        assert (line["gain_count"][i], line["gain_clipped"][i]) == (
            len(codes_by_side[0]),
            sum(codes_by_side[0]),
        )
        assert line["harm_clipped"][i] == sum(codes_by_side[1])
        for key, weights in (("ess", details.log_weight), ("gradient_ess", details.log_left)):
            w = [math.exp(float(weights[row, column])) for row, column, _, _ in tokens]
            effective = sum(w) ** 2 / (n * sum(v * v for v in w)) if any(w) else 0.0
            assert line[key][i] == pytest.approx(effective, rel=1e-5), key
    if name not in NO_BOUNDS:
        assert sum(line["high"]) + sum(line["low"]) > 10
    if name not in NO_BOUNDS or name in FADING:
        assert 0 < profile_figures(profile_of(objective, batch))["gradient_removed"] < 1


@pytest.mark.parametrize("name", preset_names())
def test_examining_is_a_call_without_its_loss(name: str) -> None:
    batch = make(rows=9, per_token=name in ("grpo", "ctpo"))
    objective = objective_named(name)
    batch.logps[0, 3], batch.old[1, 4] = float("nan"), -9999.0
    rows, ids = vars(batch).values(), turns_of(batch.mask)
    called = objective(*rows, turn_ids=ids, details=True).details
    asked = objective.examine(*rows, turn_ids=ids)
    for key, value in vars(asked).items():
        assert torch.equal(value, getattr(called, key)), key


def test_histograms_count_every_token_once() -> None:
    batch = make(rows=40, drift=0.1)
    line = profile_line(profile_of(preset("grpo"), batch), preset("grpo"))
    tokens = tokens_of(batch)
    histogram = line["log_ratio_histogram"]
    assert len(CELL_EDGES) == len(histogram["edge"]) == 66
    assert sum(line["histogram"]["count"]) == len(tokens)

    def cell(value: float) -> int:
        return sum(value > edge for edge in CELL_EDGES)

    for side, sign in (("gain", 1), ("harm", -1)):
        expected = [[0] * 67 for _ in line["edge"]]
        for row, _, t, c in tokens:
            if batch.advantages[row] * sign > 0:
                expected[next(i for i, edge in enumerate(line["edge"]) if t <= edge)][cell(c)] += 1
        assert histogram[side] == [row if any(row) else [] for row in expected]
    d = (batch.logps - batch.old)[batch.mask & (batch.advantages != 0)[:, None]]
    assert line["histogram"]["count"] == [sum(cell(v) == i for v in d.tolist()) for i in range(67)]


def test_pieces_of_a_batch_add_up_whatever_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures do not depend on parts, on when parts are processed, or on responses that cannot be clipped."""
    batch, objective = make(rows=24, drift=0.1), preset("ctpo")
    whole = profile_of(objective, batch)
    live = batch.rows(((batch.advantages != 0) & batch.mask.any(1)).nonzero()[:, 0])
    assert len(live.logps) < 24
    parts = [live.rows(index) for index in torch.arange(len(live.logps)).split(5)]
    late = profile_of(objective, *parts)
    monkeypatch.setattr("ctpo.training.diagnostics.profile._TOGETHER", 200)
    early = profile_of(objective, *parts)
    for other in (late, early):
        assert torch.equal(other.cells, whole.cells)
        for name in ("table", "effective", "within", "updates"):
            torch.testing.assert_close(
                getattr(other, name), getattr(whole, name), rtol=1e-12, atol=1e-12, equal_nan=True, msg=name
            )


def test_a_saved_profile_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ctpo.training.diagnostics.profile._TOGETHER", 250
    )  # two parts are processed; the third waits
    batch, objective = make(rows=24, drift=0.1), preset("ctpo")
    parts = [batch.rows(index) for index in torch.arange(24).split(4)]
    whole, first, second = (PositionProfile(lambda: objective, LONGEST) for _ in range(3))
    for i, part in enumerate(parts):
        rows = (part.logps, part.old, part.advantages, part.mask)
        whole.add(*rows)
        (first if i < 3 else second).add(*rows)
        if i == 2:
            second.load_state_dict(first.state_dict())
    ended, resumed = whole.close(OneProcess()), second.close(OneProcess())
    assert ended is not None
    assert resumed is not None
    torch.testing.assert_close(ended.flat(), resumed.flat(), rtol=0, atol=0, equal_nan=True)
    assert whole.close(OneProcess()) is None


def test_bins() -> None:
    for longest in (1, 2, 40, 96, 8192, 131072):
        edges = position_edges(longest)
        assert edges[-1] == longest
        assert len(edges) <= BINS
        assert edges == sorted(set(edges))
        assert edges[0] == 1
    assert position_edges(96)[:8] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_band_is_where_tokens_are_clipped() -> None:
    """The band is given at mean positions. With one position per bin, a token is beyond it exactly if it is clipped."""
    batch = make(rows=60, length=6, drift=0.1)
    batch.mask[:] = True
    objective = preset("ctpo")
    sums = profile_of(objective, batch)
    line = profile_line(sums, objective)
    assert line["edge"][:6] == [1, 2, 3, 4, 5, 6]
    for side, key, sign in (("low", "low", -1), ("high", "high", 1), ("dual", "dual", -1)):
        counted = [0] * 6
        for row, _, t, c in tokens_of(batch):
            limit = line["band"][side][t - 1]
            beyond = c < limit if side == "low" else c > limit
            counted[t - 1] += int(beyond and float(batch.advantages[row]) * sign > 0)
        assert line[key][:6] == counted
    assert profile_line(sums, preset("grpo"))["band"]["low"][:2] == pytest.approx([math.log(0.8)] * 2)
    assert profile_line(sums, preset("cispo"))["band"]["low"] is None
    assert profile_line(sums, preset("opsm"))["band"]["low"][:2] == pytest.approx([math.log(0.8)] * 2)
    for name in ("reinforce", "sequence-quantile", "prefix-quantile", "dppo-tv", "topr", "gmpo", "ctpo-turn"):
        assert profile_line(sums, preset(name))["band"] is None


def test_nothing_moved_and_nothing_to_fit() -> None:
    batch = make(rows=8, drift=0.0)
    line = profile_line(profile_of(preset("ctpo"), batch), preset("ctpo"))
    assert (line["spread_scale"], line["spread_power"], line["spread_power_stderr"]) == (None, None, None)
    assert sum(line["high"] + line["low"]) == 0


def test_drift_from_the_engine() -> None:
    """The figures equal their definitions, from two parts. Tokens that the engine could not score are left out."""
    batch = make(rows=6, drift=0.2)
    batch.old[0, :5] = float("nan")
    drift = EngineDrift()
    for part in (batch.rows(torch.arange(4)), batch.rows(torch.arange(4, 6))):
        drift.add(part.logps, part.old, part.mask)
    figures = drift.flush(OneProcess())
    kept = batch.mask & batch.old.isfinite()
    delta = [float(v) for v in (batch.logps - batch.old)[kept]]
    n = len(delta)
    rows = [
        math.exp(math.fsum(float(v) for v in (batch.logps - batch.old)[row][kept[row]]))
        for row in range(6)
        if kept[row].any()
    ]
    w = [math.exp(v) for v in delta]
    assert figures == pytest.approx(
        {
            "engine_gap_mean": sum(map(abs, delta)) / n,
            "engine_gap_max": max(map(abs, delta)),
            "engine_kl_k1": -sum(delta) / n,
            "engine_kl_k3": sum(math.exp(v) - 1 - v for v in delta) / n,
            "engine_ess": sum(w) ** 2 / (n * sum(v * v for v in w)),
            "engine_ess_sequence": sum(rows) ** 2 / (len(rows) * sum(v * v for v in rows)),
        }
    )
    assert drift.flush(OneProcess()) == {}


def test_token_pieces_join_to_the_text() -> None:
    """With a tokenizer of bytes: characters of two, three and four tokens, and bytes that are no character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    for text in ("plain", "naïve – 数学 🙂🙂 x", "🙂", "a\n b  c", ""):
        ids = tokenizer.encode(text, add_special_tokens=False)
        texts = pieces(tokenizer, ids)
        assert len(texts) == len(ids)
        assert "".join(texts) == text
    assert pieces(tokenizer, tokenizer.encode("é!")) == ["", "é", "!"]
    broken = tokenizer.encode("a🙂b")[:3]  # cut inside of a character
    assert "".join(pieces(tokenizer, broken)) == tokenizer.decode(broken)
