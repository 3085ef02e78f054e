"""The published implementation's figures (float64, CPU): loss, gradient and clip fraction of every case."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.objectives import preset

COMMITTED = Path(__file__).with_name("golden.json")
FULL = Path(
    os.environ.get("CTPO_GOLDEN", Path(__file__).parents[3] / "shared" / "golden" / "reference_losses.npz")
)
SETTINGS: dict[str, dict[str, Any]] = {
    "ctpo": {"log_low": 0.025, "log_high": 0.05, "log_dual": 0.05, "power": 0.5},
    "grpo": {"ratio_low": 0.2, "ratio_high": 0.28, "ratio_dual": 3.0},
    "gspo": {"ratio_low": 3e-4, "ratio_high": 4e-4},
}
RTOL = 1e-9
# Added to the published denominators (row lengths, and the token count of the clip fraction); undone below,
# because at nine tokens a row it is worth 1.1e-9 by itself.
EPSILON = 1e-8


def compare(case: dict[str, Any], name: str, reduction: str, expected: dict[str, Any]) -> None:
    """One objective on one case."""
    logps = torch.tensor(case["logps"], dtype=torch.float64, requires_grad=True)
    old = torch.tensor(case["old_logps"], dtype=torch.float64)
    advantages = torch.tensor(case["advantages"], dtype=torch.float64)
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    # The published GSPO ignores the aggregation it is asked for.
    reduction = "seq-mean-token-mean" if name == "gspo" else reduction
    out = preset(name, reduction=reduction, **SETTINGS[name])(logps, old, advantages, mask)
    (grad,) = torch.autograd.grad(out.loss, logps)
    assert out.loss.item() == pytest.approx(expected["loss"], rel=RTOL)
    published = torch.tensor(expected["grad"], dtype=torch.float64)
    if reduction == "seq-mean-token-mean":
        published = published * (1 + EPSILON / mask.sum(-1, keepdim=True).double())
    torch.testing.assert_close(grad, published, rtol=1e-12, atol=1e-16)
    fraction = expected["clipfrac"] * (1 + EPSILON / mask.sum().item())
    assert out.stats["clip_fraction"].item() == pytest.approx(fraction, rel=1e-12)


GOLDEN = json.loads(COMMITTED.read_text())


@pytest.mark.parametrize("key", [f"{c}/{k}" for c, v in GOLDEN.items() for k in v["expected"]])
def test_equals_committed_figures(key: str) -> None:
    case, which = key.split("/")
    name, reduction = which.split(".")
    compare(GOLDEN[case], name, reduction, GOLDEN[case]["expected"][which])


def test_defaults_are_the_published_settings() -> None:
    case = GOLDEN["c0"]
    tensors = [torch.tensor(case[k], dtype=torch.float64) for k in ("logps", "old_logps", "advantages")]
    mask = torch.tensor(case["mask"], dtype=torch.bool)
    for which, expected in case["expected"].items():
        name, reduction = which.split(".")
        if name != "gspo" or reduction == "seq-mean-token-mean":
            out = preset(name, reduction=reduction)(*tensors, mask)
            assert out.loss.item() == pytest.approx(expected["loss"], rel=RTOL)


@pytest.mark.skipif(
    not FULL.exists(), reason="the full figures are not at hand (set CTPO_GOLDEN to their path)"
)
def test_equals_all_figures() -> None:
    numpy = pytest.importorskip("numpy")
    figures = numpy.load(FULL)
    for case in ("c0", "c1", "c2", "c3"):
        inputs = {k: figures[f"{case}.{k}"] for k in ("logps", "old_logps", "advantages", "mask")}
        for name in SETTINGS:
            for reduction in ("token-mean", "seq-mean-token-mean"):
                expected = {
                    k: figures[f"{case}.{name}.{reduction}.{k}"] for k in ("loss", "grad", "clipfrac")
                }
                compare(inputs, name, reduction, expected)
