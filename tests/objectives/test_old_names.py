"""Names of the previous release: accepted, warned of, and right."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from ctpo.objectives import Objective, correct_rollout, preset
from ctpo.objectives.advantages import gae, rloo
from ctpo.objectives.ratios import TokenRatio
from ctpo.objectives.surrogates import MinClip
from ctpo.objectives.trust_regions import LogBand, RatioBand

from .batches import make, run, same


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ctpo", {"low": 0.1, "high": 0.2, "dual": 0.3}, {"log_low": 0.1, "log_high": 0.2, "log_dual": 0.3}),
        ("ctpo-geomean", {"dual": None}, {"log_dual": None}),
        ("gspo", {"low": 1e-3, "high": 2e-3}, {"ratio_low": 1e-3, "ratio_high": 2e-3}),
        ("grpo", {"dual": 5.0}, {"ratio_dual": 5.0}),
        ("ce-gppo", {"low": 0.1}, {"ratio_low": 0.1}),
        ("ctpo", {"backend": "compile"}, {"backend": "native"}),
    ],
)
def test_knobs(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(FutureWarning) as warned:
        objective = preset(name, **old)
    assert objective == preset(name, **new)
    assert {each.filename for each in warned} == {__file__}
    for key, value in new.items():
        assert any((value if key == "backend" else key) in str(each.message) for each in warned)


def test_knobs_that_kept_their_names_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preset("ctpo-calibrated", dual=False)
        preset("ctpo", log_high=0.2, power=0.4)


def test_regions() -> None:
    with pytest.warns(FutureWarning, match="log_high"):
        assert LogBand(0.1, high=0.2, power=0.5) == LogBand(0.1, 0.2, power=0.5)
    with pytest.warns(FutureWarning, match="ratio_low"):
        assert RatioBand(low=0.1, ratio_high=0.2) == RatioBand(0.1, 0.2)


def test_masks() -> None:
    """`loss_mask` was true on tokens that count, `rejection_mask` is true on those that do not."""
    batch, objective = make(), preset("ctpo")
    rejected = torch.rand(batch.mask.shape) < 0.3
    expected, _ = run(objective, batch, rejection_mask=rejected)
    with pytest.warns(FutureWarning, match="rejection_mask .*opposite"):
        out, _ = run(objective, batch, loss_mask=(~rejected).float())
    same(out, expected, 0.0)
    values = (batch.logps, batch.old, batch.advantages)
    with pytest.warns(FutureWarning, match="response_mask"):
        same(objective(*values, mask=batch.mask), objective(*values, batch.mask), 0.0)  # type: ignore[call-arg]
    with pytest.warns(FutureWarning, match="response_mask"):
        old = correct_rollout(batch.old, batch.logps, mask=batch.mask, mode="reject")  # type: ignore[call-arg]
    new = correct_rollout(
        batch.old, batch.logps, batch.mask, action="reject", high=5.0, low=0.0, denominator="kept"
    )
    assert torch.equal(old.rejection_mask, new.rejection_mask)
    with pytest.warns(FutureWarning, match="rejection_mask"):
        assert torch.equal(new.loss_mask, ~new.rejection_mask)
    rewards = torch.rand(batch.mask.shape)
    with pytest.warns(FutureWarning, match="response_mask"):
        assert torch.equal(rloo(rewards, 7, mask=batch.mask), rloo(rewards, 7, response_mask=batch.mask))  # type: ignore[call-arg]
    with pytest.warns(FutureWarning, match="response_mask"):
        gae(rewards, rewards, mask=batch.mask)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"level": "sequence"}, {"level": "sum"}),
        ({"threshold": 1.2, "floor": 0.9, "level": "token"}, {"high": 1.2, "level": "token"}),
        (
            {"threshold": 1.2, "floor": 0.9, "mode": "reject", "level": "token"},
            {"high": 1.2, "low": 0.9, "action": "reject", "level": "token", "denominator": "kept"},
        ),
    ],
)
def test_rollout_correction(old: dict[str, Any], new: dict[str, Any]) -> None:
    batch = make(drift=0.3)
    with pytest.warns(FutureWarning, match="has a new name") as caught:
        was = correct_rollout(batch.old, batch.logps, batch.mask, **old)
    assert all(each.filename == __file__ for each in caught)
    now = correct_rollout(batch.old, batch.logps, batch.mask, **new)
    assert torch.equal(was.weights, now.weights)
    assert torch.equal(was.rejection_mask, now.rejection_mask)
    with pytest.raises(ValueError, match="threshold: this is the old name of high"):
        correct_rollout(batch.old, batch.logps, batch.mask, threshold=1.0, high=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: preset("ctpo", low=0.1, log_low=0.1),
            "low: this is the old name of log_low, which is given too",
        ),
        (lambda: preset("reinforce", low=0.1), "'low' is not known"),
        (lambda: preset("grpo", log_low=0.1), "'log_low' is not known; did you mean 'ratio_low'"),
        (lambda: preset("ctpo", backend="triton"), '"triton" is gone; use torch.compile'),
        (
            lambda: Objective(
                ratio=TokenRatio(), trust_region=RatioBand(0.1, 0.1), surrogate=MinClip(), backend="cuda"
            ),
            "backend: 'cuda'",
        ),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
