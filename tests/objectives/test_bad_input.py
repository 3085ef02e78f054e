"""Every refusal names the argument, the value and the mend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctpo.objectives import (
    Gate,
    Objective,
    RolloutCorrection,
    SequenceShard,
    anchor_logps,
    correct_rollout,
    named_correction,
    preset,
    preset_defaults,
)
from ctpo.objectives.advantages import gae, group_normalised, rloo
from ctpo.objectives.details import position_profile
from ctpo.objectives.layouts.packed import packed_from
from ctpo.objectives.penalties import kl_penalty
from ctpo.objectives.ratios import TokenRatio
from ctpo.objectives.reductions import Reduction
from ctpo.objectives.surrogates import MinClip
from ctpo.objectives.trust_regions import RatioBand

X = torch.zeros(2, 3)
M = torch.ones(2, 3, dtype=torch.bool)
A = torch.zeros(2)
V, VM = torch.zeros(4), torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.zeros(2, 3, 1), X, A, M), {}, r"logps: \(2, 3, 1\); expected"),
        (([0.0], X, A, M), {}, "logps: list"),
        ((X, X[:, :2], A, M), {}, r"old_logps: shape \(2, 2\) differs from logps \(2, 3\)"),
        ((X, X, A, M[:1]), {}, r"response_mask: shape \(1, 3\) differs"),
        ((X, X, torch.zeros(3), M), {}, r"advantages: shape \(3,\); expected \(2,\)"),
        ((X, X, A.long(), M), {}, "advantages: dtype torch.int64"),
        ((X.long(), X, A, M), {}, "logps: dtype torch.int64"),
        ((X, X, A, M * 2), {}, "response_mask: value 2 is neither 0 nor 1"),
        ((X, X, A, M * 0.5), {}, "response_mask: value 0.5 is neither"),
        ((X, X, A, [[1]]), {}, "response_mask: expected a torch.Tensor, got list"),
        ((X, X, A, M.to_sparse()), {}, "response_mask: layout torch.sparse_coo is not dense"),
        ((X, X, A, M), {"rejection_mask": M * 3}, "rejection_mask: value 3"),
        ((X, X, A, M), {"weights": torch.zeros(5)}, r"weights: shape \(5,\)"),
        ((X, X, A, M), {"segment_ids": torch.zeros(2)}, "segment_ids: logps are padded"),
        ((V, V, A, VM), {}, "segment_ids, cu_seqlens: packed tokens"),
        (
            (V, V, A, VM),
            {"segment_ids": torch.zeros(3).long()},
            r"segment_ids: torch.int64 \(3,\); expected \[4\]",
        ),
        ((V, V, A, VM), {"segment_ids": torch.zeros(4)}, "segment_ids: torch.float32"),
        ((V, V, A, VM), {"segment_ids": torch.tensor([0, 1, 1, 2])}, "values from 0 to 2; expected 0 to 1"),
        ((V, V, A, VM), {"segment_ids": torch.tensor([-1, 0, 0, 1])}, "values from -1"),
        ((V, V, V, VM), {"segment_ids": torch.tensor([-1, 0, 0, 1])}, "values from -1 to 1; expected 0."),
        ((V, V, A, VM), {"segment_ids": torch.tensor([0, 1, 0, 1])}, "they decrease somewhere"),
        ((V, V, A, VM), {"cu_seqlens": torch.tensor([0, 2, 5])}, "cu_seqlens: runs from 0 to 5"),
        ((V, V, A, VM), {"cu_seqlens": torch.tensor([0, 5, 4])}, "expected to rise"),
        ((V, V, A, VM), {"cu_seqlens": torch.zeros(2, 2)}, r"cu_seqlens: shape \(2, 2\)"),
        ((X, X, A, M), {"turn_ids": M}, r"turn_ids: torch.bool \(2, 3\); expected \(2, 3\) integers"),
        (
            (X, X, A, M),
            {"turn_ids": torch.zeros(2).long()},
            r"turn_ids: torch.int64 \(2,\); expected \(2, 3\)",
        ),
        ((X, X, A, M), {"turn_ids": [[0, 0, 1]]}, "turn_ids: list"),
    ],
)
def test_calls(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        preset("ctpo")(*args, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("ctp", {}, "preset: 'ctp' is not known; did you mean 'ctpo'\\? Known: .*grpo"),
        ("zzz", {}, "preset: 'zzz' is not known. Known: "),
        ("dppo", {}, "preset: 'dppo' is not known; did you mean 'dppo-tv'\\?"),
        ("M2PO", {}, "preset: 'M2PO' is not known; did you mean 'm2po'\\?"),
        ("dppo-tv", {"low": 0.1}, "'low' is not known; did you mean 'delta_low'"),
        (3, {}, "preset: 3"),
        ("ctpo", {"hihg": 0.1}, "override of preset 'ctpo': 'hihg' is not known; did you mean 'log_high'"),
        ("reinforce", {"low": 0.1}, "'low' is not known"),
        ("ctpo", {"log_low": -0.1}, "log_low: -0.1 must be >= 0"),
        ("ctpo", {"log_high": -1}, "log_high: -1 must be >= 0"),
        ("ctpo", {"log_dual": -1.0}, "log_dual: -1.0 must be >= 0"),
        ("ctpo", {"power": "half"}, "power: 'half' is not a number"),
        ("ctpo", {"power": float("inf")}, "power: inf must be finite"),
        ("ctpo", {"log_low": None}, "log_low: None is not a number"),
        ("ctpo", {"log_low": True}, "log_low: True is not a number"),
        ("ctpo", {"log_low": float("nan")}, "log_low: nan is not a number"),
        ("grpo", {"ratio_low": -0.1}, "ratio_low: -0.1"),
        ("grpo", {"ratio_high": -0.1}, "ratio_high: -0.1"),
        ("grpo", {"ratio_dual": 0.5}, "ratio_dual: 0.5 must be >= 1"),
        (
            "ctpo",
            {"reduction": "tokn-mean"},
            "reduction: 'tokn-mean' is not known; did you mean 'token-mean'",
        ),
        ("ctpo", {"norm_length": 0}, "norm_length: 0 must be > 0"),
        ("ctpo", {"on_bad": "ignore"}, "on_bad: 'ignore'"),
        ("ctpo", {"backend": "cuda"}, "backend: 'cuda'"),
        (
            "ctpo",
            {"kl_coef": 0.1},
            r"kl_coef: .* use loss \+ beta \* objective.reduce\(kl_penalty\(logps, ref_logps\)",
        ),
        ("grpo", {"kl_estimator": "k1"}, r"kl_estimator: .*kl_penalty\(logps, ref_logps, estimator\)"),
        ("ctpo", {"entropy_coef": 0.0}, r"entropy_coef: .*entropy_penalty\(entropies\)"),
        ("ctpo-fixed-matched", {"length": 0}, "length: 0"),
        ("ctpo-fixed-matched", {"length": 10**400}, "length: an integer of 401 digits is beyond float32"),
        ("ctpo-fixed-matched", {"log_low": "0.1"}, "log_low: '0.1' is not a number"),
        ("ctpo-fixed-matched", {"log_dual": True}, "log_dual: True is not a number"),
        ("ctpo-calibrated", {"dual": "no"}, "dual: 'no' is neither True nor False"),
        ("m2po", {"across_ranks": 1}, "across_ranks: 1 is neither True nor False"),
        ("prefix-quantile", {"across_ranks": "no"}, "across_ranks: 'no' is neither True nor False"),
        (
            "kimi",
            {"tau": 1e39},
            "tau: 1e\\+39 is beyond float32, which ends at 3.4e\\+38; use a smaller number",
        ),
        ("sequence-quantile", {"q": 1.0}, "q: 1.0 must be < 1"),
        ("dppo-tv", {"delta_high": -0.1}, "delta_high: -0.1 must be >= 0"),
        ("dppo-kl", {"delta_low": None}, "delta_low: None is not a number"),
        ("ipo", {"tau": -1.0}, "tau: -1.0 must be >= 0"),
        ("kimi", {"tau": float("inf")}, "tau: inf must be finite"),
        ("sapo", {"tau_pos": 0.0}, "tau_pos: 0.0 must be > 0"),
        ("sapo", {"tau_neg": float("inf")}, "tau_neg: inf must be finite"),
        ("vespo", {"k_pos": -1}, "k_pos: -1 must be >= 0"),
        ("ctpo-vespo", {"lambda_neg": float("inf")}, "lambda_neg: inf must be finite"),
        ("cppo", {"w_min": 1.1}, "w_min: 1.1 must be <= 1"),
        ("cppo", {"budget": -0.1}, "budget: -0.1 must be >= 0"),
        ("cppo", {"delta": -0.1}, "delta: -0.1 must be >= 0"),
        (
            "topr",
            {"level": "tokn"},
            "level: 'tokn' is not known; did you mean 'token'\\? Known: sequence, token",
        ),
        ("dispo", {"ratio_low_pos": -0.1}, "ratio_low_pos: -0.1 must be >= 0"),
        ("aspo", {"ratio_high": -0.1}, "ratio_high: -0.1 must be >= 0"),
        ("aspo", {"ratio_dual": None}, "ratio_dual: None is not a number"),
        ("ce-gppo", {"beta_low": -0.5}, "beta_low: -0.5 must be >= 0"),
        ("m2po", {"moment": -1.0}, "moment: -1.0 must be >= 0"),
        ("m2po", {"ema": 1.0}, "ema: 1.0"),
        ("fspo", {"power": "half"}, "power: 'half' is not a number"),
        ("gmpo", {"log_low": -0.4}, "log_low: -0.4 must be >= 0"),
        ("opsm", {"delta": -0.5}, "delta: -0.5 must be >= 0"),
        ("sequence-quantile", {"q": -0.1}, "q: -0.1"),
        ("sequence-quantile", {"ema": 1.0}, "ema: 1.0"),
    ],
)
def test_presets(name: Any, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        preset(name, **overrides)
    assert "\n" not in str(error.value)


def test_turns_that_are_needed_are_asked_for() -> None:
    for call in (preset("ctpo-turn"), preset("ctpo-turn").examine):
        with pytest.raises(ValueError, match=r"turn_ids: None, .* pass the turn of each token, .*turns_of"):
            call(X, X, A, M)


def test_defaults_list_every_knob() -> None:
    assert preset_defaults("ctpo") == {
        "log_low": 0.025,
        "log_high": 0.05,
        "log_dual": 0.05,
        "power": 0.5,
        "reduction": "token-mean",
        "norm_length": 1.0,
        "on_bad": "neutralise",
        "backend": "auto",
    }
    with pytest.raises(ValueError, match="preset: 'nope'"):
        preset_defaults("nope")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preset("ctpo").examine(X, X[:1], A, M), r"old_logps: shape \(1, 3\) differs"),
        (lambda: SequenceShard(), "give exactly one"),
        (lambda: SequenceShard(positions=torch.zeros(2)), "positions: torch.float32"),
        (lambda: SequenceShard(chunk_ids=torch.arange(0)), "chunk_ids: none"),
        (
            lambda: SequenceShard(positions=torch.zeros(2).long()).token_positions(3),
            "positions: 2 of them for 3",
        ),
        (lambda: SequenceShard(chunk_ids=torch.arange(2)).token_positions(3), "2 chunks do not divide 3"),
        (lambda: packed_from(torch.tensor([1, 2]), 2, None), "cu_seqlens: runs from 1"),
        (lambda: packed_from(torch.tensor([[0, 2]]), 2, None), r"cu_seqlens: shape \(1, 2\)"),
        (lambda: packed_from(torch.tensor([], dtype=torch.int64), 0, None), r"cu_seqlens: shape \(0,\)"),
        (lambda: group_normalised(torch.zeros(4), 3), "group: 3 does not divide 4"),
        (lambda: group_normalised(torch.zeros(4), torch.zeros(3).long()), r"group: torch.int64 \(3,\)"),
        (lambda: rloo(torch.zeros(4, 2), 2), r"rewards: shape \(4, 2\)"),
        (lambda: gae(A, X, M[:1]), r"values: shape \(2, 3\)"),
        (lambda: gae(torch.zeros(2, 2), X, M), r"rewards: shape \(2, 2\)"),
        (lambda: gae(A, X, M, trace=1.5), "trace: 1.5"),
        (lambda: gae(A, X, M, discount=-0.5), "discount: -0.5"),
        (lambda: kl_penalty(X, X, "k9"), "kl_estimator: 'k9'"),
        (lambda: correct_rollout(X, X, M, level="turn"), "level: 'turn' is not known"),
        (lambda: correct_rollout(X, X, M, level="max"), "level: 'max' is not known"),
        (lambda: correct_rollout(X, X, M, action="drop"), "action: 'drop'"),
        (lambda: correct_rollout(X, X, M, action="truncate", statistic="k3"), "action: 'truncate' needs"),
        (lambda: correct_rollout(X, X, M, action="reject"), "gate.low, gate.high: both are None"),
        (lambda: correct_rollout(X, X, M, high=0.0), "weight.cap: 0.0 must be > 0"),
        (lambda: correct_rollout(X, X, M, low=7.0), "weight.floor: 7.0 must not exceed"),
        (lambda: correct_rollout(X, X, M, hihg=7.0), "'hihg' is not known; did you mean 'high'"),
        (lambda: correct_rollout(X, X, M, RolloutCorrection(), high=7.0), "high: a correction is given too"),
        (lambda: correct_rollout(X, X, M, level="segment"), "turn_ids: level 'segment' needs"),
        (lambda: correct_rollout(X, X, M, turn_ids=M), "turn_ids: dtype torch.bool"),
        (lambda: correct_rollout(X, X[:1], M), "rollout_logps: shape"),
        (lambda: Gate("ratio", "token", 2.0, 1.0), "gate.low: 2.0 must not exceed gate.high 1.0"),
        (lambda: Gate("ratio", "token", -1.0), "gate.low: -1.0 must be >= 0"),
        (lambda: Gate("k4", "token", high=1.0), "gate.statistic: 'k4'"),
        (lambda: RolloutCorrection(veto=0.0), "veto: 0.0 must be > 0"),
        (lambda: RolloutCorrection(denominator="half"), "denominator: 'half'"),
        (
            lambda: RolloutCorrection(gates=(Gate(high=2.0), Gate(low=0.5))),
            "gates: two of them are on ratio_token",
        ),
        (lambda: correct_rollout(X, X, M, "tis"), "correction: 'tis' is a name; pass named_correction"),  # type: ignore[arg-type]
        (lambda: correct_rollout(X, X, M, {"veto": 1}), "correction: .* is not a RolloutCorrection"),  # type: ignore[arg-type]
        (lambda: RolloutCorrection(weight="token"), "weight: 'token' is not a Weight"),  # type: ignore[arg-type]
        (lambda: RolloutCorrection(gates=Gate(high=1)), "gates: Gate.* is not a tuple of Gates"),  # type: ignore[arg-type]
        (lambda: RolloutCorrection(gates=({"high": 1},)), "gates: .* is not a tuple of Gates"),  # type: ignore[arg-type]
        (lambda: named_correction("ice-pop"), "rollout_correction: 'ice-pop'.*did you mean 'icepop'"),
        (lambda: named_correction("tis", low=1.0), "rollout_correction 'tis': 'low'"),
        (lambda: named_correction("custom", weight={"levle": "token"}), "weight: 'levle'"),
        (lambda: named_correction("custom", weight=[1]), "weight: .1. is not a mapping"),
        (lambda: named_correction("custom", gates={"high": 1}), "gates: .* is not a list"),
        (lambda: anchor_logps("new", X, X), "anchor: 'new'"),
        (lambda: anchor_logps("rollout", X, None), "anchor: 'rollout' needs rollout_logps"),
        (lambda: Reduction("token-mean", norm_length=-1), "norm_length: -1"),
        (lambda: position_profile(preset("ctpo")(X, X, A, M, details=True).details, 4, 0), "bins: 0"),  # type: ignore[arg-type]
        (
            lambda: preset("ctpo")(
                V,
                V,
                A,
                VM,
                cu_seqlens=torch.tensor([0, 2, 4]),
                shard=SequenceShard(chunk_ids=torch.arange(1)),
            ),
            "cu_seqlens: a shard of packed tokens needs segment_ids",
        ),
        (
            lambda: Objective(
                ratio=TokenRatio(), trust_region=RatioBand(0.1, 0.1), surrogate=MinClip(), on_bad="x"
            ),
            "on_bad: 'x'",
        ),
    ],
)
def test_parts(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
