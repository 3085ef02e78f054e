"""Calls that the C pass must not run: tensors that are no plain memory, modes and transforms of torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ctpo.objectives import preset, preset_names
from ctpo.objectives.cpu.supported import call_refusal, objective_refusal
from ctpo.objectives.inputs import Inputs
from ctpo.objectives.quantile_gate import QuantileGate
from ctpo.objectives.ratios import CumulativeRatio, TokenRatio
from ctpo.objectives.surrogates import Gated, MinClip
from ctpo.objectives.trust_regions import RatioBand

from .batches import make
from .compositions import PRESETS

BAND = RatioBand(0.2, 0.2)


def test_objectives() -> None:
    class Odd(TokenRatio):
        pass

    assert objective_refusal(TokenRatio(), BAND, MinClip()) is None
    assert objective_refusal(Odd(), BAND, MinClip()) == "it does not know Odd"
    assert objective_refusal(TokenRatio(), BAND, Gated()) == "it does not know Gated"
    assert objective_refusal(TokenRatio(), QuantileGate(), MinClip()) == "it does not know QuantileGate"
    own = RatioBand(0.2, 0.2, statistic=CumulativeRatio())
    assert "statistic of their own" in str(objective_refusal(TokenRatio(), own, MinClip()))


def test_which_presets_it_runs() -> None:
    def known(name: str) -> bool:
        objective = preset(name)
        return objective_refusal(objective.ratio, objective.trust_region, objective.surrogate) is None

    assert {name for name in preset_names() if known(name)} == set(PRESETS)
    for name in set(preset_names()) - set(PRESETS):
        with pytest.raises(ValueError, match='"native" cannot run this objective: it does not know'):
            preset(name, backend="native")


class Subclass(Tensor):
    pass


def resized(x: Tensor) -> Tensor:
    """A tensor without its memory, as sharded training leaves parameters between uses."""
    y = x.clone()
    y.untyped_storage().resize_(8)
    return y


STRANGE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "subclass": (lambda x: x.as_subclass(Subclass), "is a Subclass"),
    "negated": (lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag, "lazy view"),
    "zero": (lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype), "lazy view"),
    "functional": (torch._to_functional_tensor, "lazy view"),
    "meta": (lambda x: x.to("meta"), "is on meta"),
    "sparse": (lambda x: x.to_sparse(), "sparse"),
    "nested": (lambda x: torch.nested.nested_tensor([*x]), "nested"),
    "without memory": (resized, "has less memory"),
}


@pytest.mark.parametrize("field", ["logps", "old_logps", "weights", "response_mask", "num_tokens"])
@pytest.mark.parametrize("kind", sorted(STRANGE))
def test_strange_tensors(kind: str, field: str) -> None:
    make_it, reason = STRANGE[kind]
    x = torch.rand(3, 40)
    fields = {"logps": x, "old_logps": x, "advantages": x[:, 0], "response_mask": x}
    assert call_refusal(Inputs(**fields)) is None
    assert (
        f"{field} is" in str(call_refusal(Inputs(**fields | {field: make_it(x)})))
        or reason == "has less memory"
    )
    assert reason in str(call_refusal(Inputs(**fields | {field: make_it(x)})))


def test_counts_that_are_not_one_number() -> None:
    x = torch.rand(3, 4)
    fields = {"logps": x, "old_logps": x, "advantages": x[:, 0], "response_mask": x}
    assert call_refusal(Inputs(**fields, num_tokens=torch.tensor([3]))) is None
    for count in (torch.ones(3, 1), torch.tensor(3.0, requires_grad=True)):
        assert "num_sequences is not one number" in str(call_refusal(Inputs(**fields, num_sequences=count)))


def test_modes() -> None:
    batch = make()
    arguments = list(vars(batch).values())
    expected = preset("ctpo", backend="compose")(*arguments).loss
    with torch.device("meta"):
        torch.testing.assert_close(preset("ctpo")(*arguments).loss, expected)
        with pytest.raises(ValueError, match="a mode of torch is active"):
            preset("ctpo", backend="native")(*arguments)
    with FakeTensorMode() as mode:
        fake = preset("ctpo")(*(mode.from_tensor(x) for x in arguments)).loss
    assert type(fake).__name__ == "FakeTensor"
    traced = torch.jit.trace(lambda *x: preset("ctpo")(*x).loss, arguments, check_trace=False)
    other = make(seed=3)
    torch.testing.assert_close(traced(*vars(other).values()), preset("ctpo")(*vars(other).values()).loss)


CALLS = """
import ctypes, torch, warnings
from ctpo.objectives import preset
warnings.simplefilter("ignore")
g = torch.Generator().manual_seed(0)
x = -torch.rand(4, 30, generator=g)
batch = [x, x - 0.05 * torch.randn(4, 30, generator=g), torch.randn(4, generator=g), x < -0.2]
flat = [batch[0].view(-1), batch[1].view(-1), batch[2], batch[3].view(-1)]
far = (-(2**63), -1, 4, 5, 120, 121, 2**31, 2**62, 2**63 - 1)
def attempt(*arguments, **keywords):
    try: preset("ctpo")(*arguments, **keywords)
    except (ValueError, RuntimeError, NotImplementedError, IndexError): pass
for value in far:
    for place in (0, 1, 60, 119):
        ids = torch.arange(4).repeat_interleave(30); ids[place] = value
        attempt(*flat, segment_ids=ids); attempt(*flat[:2], flat[0], flat[3], segment_ids=ids)
    for place in range(5):
        cu = torch.arange(0, 121, 30); cu[place] = value
        attempt(*flat, cu_seqlens=cu); attempt(*flat[:2], flat[0], flat[3], cu_seqlens=cu)
attempt(*flat, cu_seqlens=torch.zeros(0, dtype=torch.int64))
attempt(*flat, cu_seqlens=torch.tensor([0, 30, 60, 90, 100, 120]))
for other in (torch.zeros(0), torch.zeros(4, 30), torch.zeros(4, 30, 1), torch.zeros(())):
    for place in range(4): attempt(*(other if i == place else x for i, x in enumerate(batch)))
torch.set_default_device("meta"); attempt(*batch)
print("alive")
"""


def test_no_input_ends_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALLS], capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr[-2000:]
