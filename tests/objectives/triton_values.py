"""Values, gradients and figures of the Triton kernels against the composition. Run by test_triton.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctpo.objectives import Objective, preset, preset_names, triton_launch
from ctpo.objectives.ratios import CumulativeRatio, PrefixMeanRatio, SequenceRatio, TokenRatio
from ctpo.objectives.reductions import REDUCTIONS
from ctpo.objectives.surrogates import Linear, MinClip, StopGradientWeight
from ctpo.objectives.trust_regions import LogBand, RatioBand, Unbounded

from .batches import Batch, make, run, same
from .triton_interpreter import patch_once

if not torch.cuda.is_available():
    patch_once()

INF = float("inf")
TAKEN = [name for name in preset_names() if not name.endswith("quantile")]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(batch: Batch) -> Batch:
    return Batch(*(x.to(DEVICE) for x in (batch.logps, batch.old, batch.advantages, batch.mask)))


def drifting(length: int, drift: float = 0.1, seed: int = 0, per_token: bool = False) -> Batch:
    """Five rows (holes, an empty one, one of a token, one of advantage 0), with two unusable tokens."""
    batch = make(rows=5, length=length, drift=drift, seed=seed, per_token=per_token)
    batch.old[0, 3], batch.old[1, 4] = -INF, -9999.0
    batch.mask[0, 3] = batch.mask[1, 4] = True
    return on_device(batch)


def agree(parts: Any, batch: Batch, rtol: float = 1e-11, **kwargs: Any) -> None:
    """`parts`: a preset's name, or the keywords of an objective."""
    fast, definition = (
        preset(parts, backend=backend) if isinstance(parts, str) else Objective(**parts, backend=backend)
        for backend in ("triton", "compose")
    )
    (out, grad), (expected, expected_grad) = run(fast, batch, **kwargs), run(definition, batch, **kwargs)
    assert "Triton" in type(out.token_loss.grad_fn).__name__
    same(out, expected, rtol)
    torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=1e-16)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "TILE", 16)
    monkeypatch.setattr(triton_launch, "REDUCED_AT_ONCE", 4)


@pytest.mark.parametrize("length", [20, 9], ids=["two-tiles", "one-tile"])
@pytest.mark.parametrize("name", TAKEN)
def test_equals_composition(name: str, length: int) -> None:
    agree(name, drifting(length, per_token=length == 9))


@pytest.mark.parametrize("name", ["ctpo", "ctpo-geomean", "ctpo-prefix-gradient", "gspo", "minpro"])
def test_rows_of_many_tiles(name: str) -> None:
    """Five tiles, padded to eight, with a row whose generated tokens begin in the third."""
    batch = drifting(75, drift=0.03)
    batch.mask[1, :40] = False
    agree(name, batch)


COMPOSED = {
    "linear": (CumulativeRatio(), Unbounded(), Linear()),
    "linear-in-a-band": (CumulativeRatio(), LogBand(0.1, 0.1, 0.2, 0.5), Linear()),
    "weight": (SequenceRatio(), LogBand(0.1, 0.3), StopGradientWeight()),
    "scaled-weight": (CumulativeRatio(), LogBand(0.01, 0.02, power=0.5), StopGradientWeight()),
    "constant-weight": (CumulativeRatio("through"), LogBand(0.1, 0.3), StopGradientWeight()),
    "token-through": (TokenRatio("through"), RatioBand(0.2, 0.2, 3.0), MinClip()),
    "mean-through": (PrefixMeanRatio("through"), LogBand(0.05, 0.05, None, -0.5), MinClip()),
    "sequence-through": (SequenceRatio("through"), LogBand(2.0, 2.0, 3.0), MinClip()),
    "linear-through": (CumulativeRatio("through"), LogBand(0.1, 0.3), Linear()),
    "one-sided": (CumulativeRatio(), LogBand(INF, 0.1, power=0.5), MinClip()),
    "beyond-exp": (CumulativeRatio(), LogBand(50.0, 100.0, None, 0.1), Linear()),
    "dual-only": (CumulativeRatio(), LogBand(INF, INF, 8.0, 0.5), MinClip()),
    "no-dual": (CumulativeRatio(), LogBand(0.025, 0.05, None, 0.5), MinClip()),
    "low-dual": (CumulativeRatio(), LogBand(0.5, 8.0, 3.0), MinClip()),
    "powers": (TokenRatio(), LogBand(0.01, 0.02, 0.02, 1.0), MinClip()),
    "inverse": (TokenRatio(), LogBand(1.0, 2.0, 2.0, -1.0), MinClip()),
}


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_other_compositions(name: str) -> None:
    ratio, region, surrogate = COMPOSED[name]
    parts = {"ratio": ratio, "trust_region": region, "surrogate": surrogate}
    for length, drift in ((20, 1.5), (9, 6.0)):
        agree(parts, drifting(length, drift=drift))


COUNTS = {
    "counted": (None, None),
    "number": (2**24 + 1, 2**24 + 3.25),  # not to be had in float32
    "tensor": (torch.tensor(77), torch.tensor(9.0)),
}


@pytest.mark.parametrize("counts", sorted(COUNTS))
@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_reductions_and_counts(name: str, counts: str) -> None:
    tokens, sequences = (x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in COUNTS[counts])
    batch = drifting(20)
    rejected = torch.arange(20, device=DEVICE) % 3 != 0
    for knobs in ({}, {"norm_length": 70.0, "length_power": -0.5})[counts != "counted" :]:
        objective = preset("ctpo")
        reduction = type(objective.reduction)(name, **knobs)
        parts = {"ratio": objective.ratio, "trust_region": objective.trust_region}
        parts |= {"surrogate": objective.surrogate, "reduction": reduction}
        agree(
            parts, batch, num_tokens=tokens, num_sequences=sequences,
            loss_mask=rejected.expand(5, 20), weights=torch.linspace(0, 2, 5, device=DEVICE),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["ctpo", "ctpo-geomean", "grpo", "cispo"])
def test_float32_takes_the_same_decisions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "TILE", 256)
    batch = make(rows=9, length=300, drift=0.05)
    batch = on_device(batch.to(torch.float32))
    (out, grad), (expected, expected_grad) = (
        run(preset(name, backend=backend), batch) for backend in ("triton", "compose")
    )
    for part in ("clip_fraction_high", "clip_fraction_low", "clip_fraction_dual"):
        assert out.stats[part].item() == expected.stats[part].item()
    same(out, expected, 1e-5, 1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["ctpo", "ctpo-prefix-gradient", "gspo", "cispo"])
def test_token_loss_carries_the_same_gradient(name: str) -> None:
    batch, grads = drifting(20), []
    weights = torch.linspace(0.5, 2, 100, dtype=torch.float64, device=DEVICE).reshape(5, 20)
    for backend in ("triton", "compose"):
        logps = batch.logps.clone().requires_grad_()
        out = preset(name, backend=backend)(logps, batch.old, batch.advantages, batch.mask)
        grads += torch.autograd.grad((out.token_loss * weights).sum(), logps, retain_graph=True)
        grads += torch.autograd.grad(out.token_loss.sum(), logps, retain_graph=True)
        grads += torch.autograd.grad(2 * out.loss + (out.token_loss * weights).sum(), logps)
    for mine, wanted in zip(grads[:3], grads[3:], strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", ["reinforce", "gspo"])
def test_gradcheck(name: str) -> None:
    """Their losses are differentiated exactly as they are written."""
    batch = on_device(make(rows=3, length=18, drift=1e-3))

    def loss(logps: torch.Tensor) -> torch.Tensor:
        return preset(name, backend="triton")(logps, batch.old, batch.advantages, batch.mask).loss

    assert torch.autograd.gradcheck(loss, batch.logps.clone().requires_grad_(), fast_mode=True)
