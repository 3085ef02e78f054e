"""The compiled path equals the composition. CTPO_TEST_COMPILE=1 switches it on: it takes minutes."""

from __future__ import annotations

import os

import pytest
import torch

from ctpo.objectives import preset, stream

from .batches import make, run, same

pytestmark = pytest.mark.skipif(not os.environ.get("CTPO_TEST_COMPILE"), reason="set CTPO_TEST_COMPILE=1")


@pytest.mark.parametrize("name", ["ctpo", "ctpo-geomean", "ctpo-prefix-gradient", "gspo", "dapo", "cispo"])
def test_equals_composition(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (1 << 18, 80):
        monkeypatch.setattr(stream, "BLOCK", block)
        for seed, per_token in enumerate((False, True)):
            batch = make(rows=9, length=40, drift=0.2, seed=seed, per_token=per_token)
            batch.old[0, 3] = float("-inf")
            batch.logps[1, ~batch.mask[1]] = float("nan")
            batch.old[1, 4] = -9999.0
            out, grad = run(preset(name, backend="compile"), batch)
            expected, expected_grad = run(preset(name, backend="compose"), batch)
            same(out, expected, 1e-11)
            torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


def test_empty() -> None:
    nothing = torch.zeros(2, 0)
    out = preset("ctpo", backend="compile")(nothing, nothing, torch.zeros(2), nothing)
    assert out.loss.item() == 0
