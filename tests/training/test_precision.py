"""When products are in bfloat16, and that weights, gradients and the optimizer stay in float32 then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.cpu.precision import bfloat16_speedup
from ctpo.training.scoring.precision import wants_bfloat16


def test_auto_follows_the_measurement_and_never_an_exact_anchor(fit: Callable[..., Any]) -> None:
    model = fit(CTPOTrainer, CTPOConfig, max_steps=1).model
    assert wants_bfloat16(model, "bfloat16", exact_anchor=True)
    assert not wants_bfloat16(model, "float32", exact_anchor=False)
    assert not wants_bfloat16(model, "auto", exact_anchor=True)
    speedup = bfloat16_speedup(48)
    if not 0.8 < speedup / 1.2 < 1.25:  # two measurements may then disagree
        assert wants_bfloat16(model, "auto", exact_anchor=False) == (speedup > 1.2)


def test_measuring_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    assert bfloat16_speedup(16) > 0
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_products_are_in_bfloat16(fit: Callable[..., Any]) -> None:
    """A step in float32 and one in bfloat16 differ by rounding, and after both everything is in float32."""
    settings: dict[str, Any] = {"max_steps": 1, "learning_rate": 0.0}
    actual = {}
    for name in ("float32", "bfloat16"):
        trainer = fit(CTPOTrainer, CTPOConfig, compute_dtype=name, **settings)
        trainer.model.train()
        trainer.model.zero_grad()
        inputs = dict(trainer._buffered_inputs[1], advantages=torch.linspace(-1, 1, 8))
        trainer._compute_loss(trainer.model, inputs).backward()
        parameters = list(trainer.model.parameters())
        assert {p.dtype for p in parameters} | {p.grad.dtype for p in parameters} == {torch.float32}
        moments = [state["exp_avg"].dtype for state in trainer.optimizer.state.values()]
        assert set(moments) == {torch.float32}
        actual[name] = torch.cat([p.grad.flatten() for p in parameters])
    difference = (actual["bfloat16"] - actual["float32"]).norm() / actual["float32"].norm()
    assert 1e-5 < difference < 0.1


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compute_dtype='float16' is not one of auto, float32, bfloat16"):
        CTPOConfig(str(tmp_path), use_cpu=True, compute_dtype="float16")
    with pytest.raises(ValueError, match="max_tokens_per_micro_batch=-1 is negative; use 0 for no limit"):
        CTPOConfig(str(tmp_path), use_cpu=True, max_tokens_per_micro_batch=-1)
