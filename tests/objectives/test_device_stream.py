"""The fused path of other devices than the CPU, on tensors of the CPU: it reads nothing and equals the composition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ctpo.objectives import Objective, preset, preset_names

from ctpo.objectives.cpu import autograd as fused

from .batches import make, run, same
from .test_fused import COMPOSED


class Reads(TorchDispatchMode):
    """Names of the operations that would make a device wait for the host or the host for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.split(".")[0] in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "equal",
            "_unique2",
        ):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", preset_names())
def test_the_device_path_reads_nothing_and_agrees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path other devices take, run on the CPU's tensors."""
    monkeypatch.setattr(fused, "reads_are_free", lambda device: False)
    for drift in (0.1, 3.0):
        batch = make(drift=drift)
        batch.old[0, 3] = float("nan")
        batch.old[1, 4] = batch.logps[5, 4] = -9999.0
        batch.mask[0, 3] = batch.mask[1, 4] = batch.mask[5, 4] = True
        with Reads() as reads:
            out, grad = run(preset(name), batch)
        assert reads.found == []
        expected, expected_grad = run(preset(name, backend="compose"), batch)
        same(out, expected, 1e-11)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_other_compositions_on_the_device_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "reads_are_free", lambda device: False)
    parts = dict(zip(("ratio", "trust_region", "surrogate"), COMPOSED[name], strict=True))
    batches = [make(drift=drift, length=25, per_token=drift == 1.5) for drift in (0.05, 1.5, 6.0, 0.05)]
    batches[-1].old -= 12  # beyond what may be exponentiated
    for batch in batches:
        out, grad = run(Objective(**parts), batch)  # type: ignore[arg-type]
        expected, expected_grad = run(Objective(**parts, backend="compose"), batch)  # type: ignore[arg-type]
        same(out, expected, 1e-11)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-16)
