"""One batch through every adapter: the gradient by token is the objective's own, called directly, to 1e-6."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import handover
from .standins import provide

PRESETS = ("ctpo", "grpo", "gspo", "cispo", "ctpo-prefix-gradient", "minpro", "ppo", "prefix-quantile")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("trainer", handover.REDUCED_AS)
def test_gradient_by_token(trainer: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if trainer in ("prime_rl", "nemo_rl") and "quantile" in name:
        pytest.skip("the quantile is over one call, and this trainer calls for parts of the batch")
    provide(trainer, monkeypatch)
    batch = handover.make()
    knobs: dict[str, Any] = handover.KNOBS.get(name, {})
    extra = {"monkeypatch": monkeypatch} if trainer in ("slime", "miles") else {}
    loss, grad = getattr(handover, trainer)(name, batch, **extra, **knobs)
    expected, expected_grad = handover.core(name, batch, handover.REDUCED_AS[trainer], **knobs)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_verl_reduces_as_it_says(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provide("verl", monkeypatch)
    batch = handover.make()
    _, grad = handover.verl("ctpo", batch, mode=mode)
    torch.testing.assert_close(grad.double(), handover.core("ctpo", batch, mode)[1], rtol=0, atol=1e-6)
