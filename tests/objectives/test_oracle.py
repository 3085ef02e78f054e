"""Every preset against the scalar-loop oracle, in float64, on ragged masks with holes and strong drift."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ctpo.objectives import preset, preset_names

from .oracle import evaluate

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
    "ctpo-geomean": {**CTPO, "family": "prefix-mean", "power": -0.5},
    "ctpo-prefix-gradient": {**CTPO, "gradient": "through"},
    "sequence": {"family": "sequence", "low": 0.5, "high": 4.0, "dual": 5.0},
    "ppo": {"family": "token", "low": 0.2, "high": 0.2},
    "dapo": {"family": "token", "low": 0.2, "high": 0.28},
    "dr-grpo": {"family": "token", "low": 0.2, "high": 0.2},
    "gspo": {"family": "sequence-mean", "low": 3e-4, "high": 4e-4, "gradient": "through"},
    "gspo-token": {"family": "sequence-mean", "low": 3e-4, "high": 4e-4},
    "cispo": {"family": "token", "low": 1.0, "high": 4.0, "surrogate": "weight"},
    "minpro": {"family": "min-prefix", "low": 0.2, "high": 0.28},
    "reinforce": {"family": "unit", "surrogate": "weight"},
}
QUANTILE = {"sequence-quantile", "prefix-quantile"}
REDUCTIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "sum")
DRIFTS = (0.01, 0.1, 0.6)


def batch(drift: float, seed: int, rows: int = 7, length: int = 33) -> tuple[torch.Tensor, ...]:
    """Ragged rows with holes, one row without a token, one with a single token."""
    g = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(rows, length, generator=g, dtype=torch.float64)
    old = logps - drift * torch.randn(rows, length, generator=g, dtype=torch.float64)
    mask = torch.rand(rows, length, generator=g) < 0.7
    mask[2] = False
    mask[3] = torch.arange(length) == 5
    advantages = torch.randn(rows, generator=g, dtype=torch.float64)
    advantages[4] = 0.0
    return logps, old, advantages, mask


def test_every_preset_has_an_oracle() -> None:
    assert set(SPECS) | QUANTILE == set(preset_names())


@pytest.mark.parametrize("per_token", [False, True], ids=["A_B", "A_BT"])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_equals_the_oracle(name: str, per_token: bool) -> None:
    for seed, drift in enumerate(DRIFTS):
        logps, old, advantages, mask = batch(drift, seed)
        if per_token:
            advantages = advantages[:, None] * torch.linspace(-1, 1, logps.shape[1], dtype=torch.float64)
        for reduction in REDUCTIONS:
            answer = evaluate(
                SPECS[name],
                reduction,
                logps.tolist(),
                old.tolist(),
                advantages.tolist(),
                mask.tolist(),
                norm=50.0,
            )
            x = logps.clone().requires_grad_()
            out = preset(name, reduction=reduction, norm_length=50.0)(x, old, advantages, mask)
            (grad,) = torch.autograd.grad(out.loss, x)
            assert out.loss.item() == pytest.approx(answer.loss, rel=1e-12, abs=1e-14)
            expected = torch.tensor(answer.grad, dtype=torch.float64)
            torch.testing.assert_close(grad, expected, rtol=1e-11, atol=1e-15)
            assert out.stats["clip_fraction"].item() == pytest.approx(
                answer.clipped / answer.tokens, rel=1e-12
            )
            assert out.stats["clip_fraction_dual"].item() == pytest.approx(
                answer.dual / answer.tokens, rel=1e-12
            )
