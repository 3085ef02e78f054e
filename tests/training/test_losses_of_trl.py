"""Weights and masks of presets against the functions that TRL's losses call, also far from the policy that sampled."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer

from ctpo.objectives import preset

sys.path.insert(0, str(Path(__file__).parent.parent / "objectives"))
from batches import make, run


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
