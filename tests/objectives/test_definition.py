"""The definition on its own: its steps are numbers, and so are the transposes of its ratios."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ctpo.objectives.cpu.supported import RATIOS
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.ratios import DecayedRatio
from ctpo.objectives.tokens import sanitise

from .batches import make, run
from .compositions import NAMES, objective


class Finite(TorchDispatchMode):
    """Every result of every operation is a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and "empty" not in func.__name__:
                assert not value.isnan().any(), func
        return out


@pytest.mark.parametrize("name", NAMES)
def test_no_step_is_not_a_number(name: str) -> None:
    """So that anomaly detection and hooks that look for NaN stay usable."""
    batch = make(drift=0.5)
    batch.mask[:, 0] = False
    with Finite():
        run(objective(name, "compose"), batch)


@pytest.mark.parametrize("ratio", RATIOS)
def test_pullbacks_of_rows_without_tokens_are_numbers(ratio: Any) -> None:
    batch = make()
    batch.mask[:, 0] = False
    tokens = sanitise(batch.logps, batch.old, batch.mask, Padded())
    made = ratio(decay=0.9) if ratio is DecayedRatio else ratio()
    assert made.pullback(tokens, torch.ones_like(batch.logps)).isfinite().all()
