"""Every preset against the scalar-loop oracle, in float64, on ragged masks with holes and strong drift."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ctpo.objectives import preset, preset_names

from .batches import make
from .oracle import evaluate
from .published_oracle import PUBLISHED

LN2, LN5 = math.log(2), math.log(5)
CTPO = {"family": "cumulative", "convention": "log", "low": 0.025, "high": 0.05, "dual": 0.05, "power": 0.5}
SPECS: dict[str, dict[str, Any]] = {
    "ctpo": CTPO,
    "ctpo-fixed": {**CTPO, "low": LN2, "high": LN5, "dual": LN5, "power": 0.0},
    "grpo": {"family": "token", "low": 0.2, "high": 0.28, "dual": 3.0},
    "ctpo-fixed-matched": {
        **CTPO,
        "low": 0.025 * 2 / 3 * 8000**0.5,
        "high": 0.05 * 2 / 3 * 8000**0.5,
        "dual": 0.05 * 2 / 3 * 8000**0.5,
        "power": 0.0,
    },
    # 1.2815515655446004 is the 0.9 quantile of the standard normal distribution.
    "ctpo-calibrated": {**CTPO, **dict.fromkeys(("low", "high", "dual"), 0.28 * 1.2815515655446004)},
    "ctpo-geomean": {**CTPO, "family": "prefix-mean", "power": -0.5},
    "ctpo-decay": {**CTPO, "family": "decayed", "decay": 0.98},
    "ctpo-prefix-gradient": {**CTPO, "gradient": "through"},
    "sequence": {"family": "sequence", "low": 0.5, "high": 4.0, "dual": 5.0},
    "ppo": {"family": "token", "low": 0.2, "high": 0.2},
    "dapo": {"family": "token", "low": 0.2, "high": 0.28},
    "dr-grpo": {"family": "token", "low": 0.2, "high": 0.2},
    "gspo": {"family": "sequence-mean", "low": 3e-4, "high": 4e-4, "gradient": "through"},
    "gspo-token": {"family": "sequence-mean", "low": 3e-4, "high": 4e-4},
    "cispo": {"family": "token", "low": 1.0, "high": 4.0, "surrogate": "weight"},
    "minpro": {"family": "min-prefix", "low": 1.0, "high": 4.0, "surrogate": "weight"},
    "reinforce": {"family": "unit", "surrogate": "weight"},
    "lusp": {"family": "sequence-mean", "low": 2e-3, "high": 2.5e-3, "gradient": "through"},
}
QUANTILE = {"sequence-quantile", "prefix-quantile"}
REDUCTIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "sum")
DRIFTS = (0.01, 0.1, 0.6)


def test_every_preset_has_an_oracle() -> None:
    assert set(SPECS) | QUANTILE | set(PUBLISHED) == set(preset_names())


@pytest.mark.parametrize("backend", ["auto", "compose"])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_equals_the_oracle(name: str, backend: str) -> None:
    for seed, drift in enumerate(DRIFTS):
        batch = make(drift=drift, seed=seed, per_token=seed == 1)
        inputs = [x.tolist() for x in (batch.logps, batch.old, batch.advantages, batch.mask)]
        for reduction in REDUCTIONS:
            answer = evaluate(SPECS[name], reduction, *inputs, norm=50.0)
            objective = preset(name, reduction=reduction, norm_length=50.0, backend=backend)
            logps = batch.logps.clone().requires_grad_()
            out = objective(logps, batch.old, batch.advantages, batch.mask)
            (grad,) = torch.autograd.grad(out.loss, logps)
            assert out.loss.item() == pytest.approx(answer.loss, rel=1e-12, abs=1e-14)
            expected = torch.tensor(answer.grad, dtype=torch.float64)
            torch.testing.assert_close(grad, expected, rtol=1e-11, atol=1e-15)
            for stat, count in (("clip_fraction", answer.clipped), ("clip_fraction_dual", answer.dual)):
                assert out.stats[stat].item() == pytest.approx(count / answer.tokens, rel=1e-12)
