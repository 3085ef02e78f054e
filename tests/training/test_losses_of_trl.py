"""Presets that TRL ships too, against TRL's own code: whole trainings, and the functions that its losses call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.objectives import preset

sys.path.insert(0, str(Path(__file__).parent.parent / "objectives"))
from batches import make, run

sys.path.insert(0, str(Path(__file__).parent))
from test_trainer import PLAIN, parameters, stock_trainer

TRAINED: dict[str, dict[str, Any]] = {
    "sapo": {"loss_type": "sapo"},
    "lusp": {
        "loss_type": "luspo",
        "importance_sampling_level": "sequence",
        "epsilon": 2e-3,
        "epsilon_high": 2.5e-3,
    },
}


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_as_trl_does(name: str, fit: Callable[..., Any]) -> None:
    """The same parameters after eight updates, four of them off-policy."""
    ours = fit(CTPOTrainer, CTPOConfig, objective=name, **PLAIN)
    theirs = stock_trainer(fit, **TRAINED[name])
    torch.testing.assert_close(parameters(ours), parameters(theirs), atol=2e-6, rtol=0)


@pytest.mark.parametrize("drift", [0.02, 0.3, 2.0])
def test_vespo_has_trls_weights(drift: float) -> None:
    batch = make(drift=drift)
    d = torch.where(batch.mask, batch.logps - batch.old, 0.0)
    a = batch.advantages[:, None]
    phi = GRPOTrainer.get_gamma_weights(a, d, batch.mask, None)
    _, grad = run(preset("vespo", reduction="sum"), batch)
    torch.testing.assert_close(grad, torch.where(batch.mask, -phi * a, 0.0))


def test_opsm_drops_what_trl_masks() -> None:
    batch = make(rows=40, drift=0.3)
    mask = batch.mask.double()
    kept = GRPOTrainer.get_off_policy_mask(batch.advantages[:, None], batch.logps, batch.old, mask, 0.03)
    out, _ = run(preset("opsm", delta=0.03), batch)
    plain, _ = run(preset("grpo"), batch)
    torch.testing.assert_close(out.token_loss, plain.token_loss * kept)
    assert 0 < (kept == 0).sum() < 20
