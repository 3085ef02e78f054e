"""One batch through every adapter: the gradient by token is the objective's own, called directly, to 1e-6."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ctpo.errors import UserError
from ctpo.objectives import named_correction

from . import handover
from .standins import provide

PRESETS = (
    *("ctpo", "grpo", "gspo", "cispo", "ctpo-prefix-gradient", "minpro", "ppo", "prefix-quantile"),
    *(
        "ctpo-turn",
        "ctpo-vespo",
        "dppo-tv",
        "dppo-kl",
        "ipo",
        "cppo",
        "opsm",
        "sapo",
        "vespo",
        "topr",
        "dispo",
    ),
    *("aspo", "ce-gppo", "gmpo", "fspo", "lusp", "kimi"),
)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("trainer", handover.REDUCED_AS)
def test_gradient_by_token(trainer: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if trainer in ("prime_rl", "nemo_rl", "openrlhf", "roll", "areal") and "quantile" in name:
        pytest.skip("the quantile is over one call, and this trainer calls for parts of the batch")
    provide(trainer, monkeypatch)
    batch = handover.make()
    if trainer == "skyrl" and name in ("kimi", "ipo"):  # it puts its denominators into the advantages
        with pytest.raises(UserError, match=f"preset '{name}' pulls tokens to the anchor"):
            handover.skyrl(name, batch)
        return
    knobs: dict[str, Any] = handover.KNOBS.get(name, {})
    extra = {"monkeypatch": monkeypatch} if trainer in ("slime", "miles") else {}
    loss, grad = getattr(handover, trainer)(name, batch, **extra, **knobs)
    expected, expected_grad = handover.core(name, batch, handover.REDUCED_AS[trainer], **knobs)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["ctpo", "cispo", "gspo"])
@pytest.mark.parametrize("trainer", handover.REDUCED_AS)
def test_advantages_may_differ_from_token_to_token(
    trainer: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of turns do."""
    provide(trainer, monkeypatch)
    batch = handover.make()
    flips = torch.where(torch.arange(batch.mask.shape[1]) % 7 < 3, -0.5, 1.5)
    batch.advantages = batch.advantages * flips
    extra = {"monkeypatch": monkeypatch} if trainer in ("slime", "miles") else {}
    loss, grad = getattr(handover, trainer)(name, batch, **extra, **handover.KNOBS.get(name, {}))
    expected, expected_grad = handover.core(
        name, batch, handover.REDUCED_AS[trainer], **handover.KNOBS.get(name, {})
    )
    torch.testing.assert_close(grad.double(), expected_grad, rtol=0, atol=1e-6)
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
def test_verl_reduces_as_it_says(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provide("verl", monkeypatch)
    batch = handover.make()
    _, grad = handover.verl("ctpo", batch, mode=mode)
    torch.testing.assert_close(grad.double(), handover.core("ctpo", batch, mode)[1], rtol=0, atol=1e-6)


def nemo_weights(kind: str, old: torch.Tensor, rollout: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The factors of the token losses by NeMo-RL's three truncated_importance_sampling_types, with its settings."""
    weights = torch.zeros_like(old)
    for i in range(len(old)):
        where = [t for t in range(old.shape[1]) if mask[i, t]]
        deltas = [(old[i, t] - rollout[i, t]).item() for t in where]
        mean = math.exp(sum(deltas) / len(deltas))
        for t, delta in zip(where, deltas, strict=True):
            w = math.exp(delta)
            weights[i, t] = {
                "tis": min(w, 1.1),
                "icepop": w if 0.9 <= w <= 1.1 else 0.0,
                "seq-mask-tis": w if 0.97 <= mean <= 1.03 else 0.0,
            }[kind]
    return weights


@pytest.mark.parametrize("kind", ["tis", "icepop", "seq-mask-tis"])
def test_nemo_rl_is_corrected_as_by_itself(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected tokens stay in its totals, over two micro-batches."""
    provide("nemo_rl", monkeypatch)
    batch = handover.make()
    noise = torch.randn(batch.old.shape, generator=torch.Generator().manual_seed(2))
    rollout = batch.old - 0.1 * noise
    bounds = {
        "tis": {"cap": 1.1},
        "icepop": {"low": 0.9, "high": 1.1},
        "seq-mask-tis": {"low": 0.97, "high": 1.03},
    }
    correction = named_correction(kind, **bounds[kind])
    _, plain = handover.nemo_rl("grpo", batch)
    _, grad = handover.nemo_rl("grpo", batch, rollout, correction=correction)
    weights = nemo_weights(kind, batch.old, rollout, batch.mask)
    assert weights[batch.mask].unique().numel() > 2
    torch.testing.assert_close(grad, plain * weights, rtol=1e-5, atol=1e-8)
    with pytest.warns(FutureWarning, match="truncate has a new name, correction"):
        old_name = handover.nemo_rl("grpo", batch, rollout, truncate=2.0)
    recipe = handover.nemo_rl("grpo", batch, rollout, correction=named_correction("recipe", cap=2.0))
    assert torch.equal(old_name[1], recipe[1])
    for wrong, message in (({"anchor": "rollout"}, "count the engine"), ({"denominator": "kept"}, "kept")):
        knobs = {**bounds[kind], **{k: v for k, v in wrong.items() if k == "denominator"}}
        anchor = {k: v for k, v in wrong.items() if k == "anchor"}
        with pytest.raises(UserError, match=message):
            handover.nemo_rl("grpo", batch, correction=named_correction(kind, **knobs), **anchor)
