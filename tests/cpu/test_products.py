"""The faster products against torch's own linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ctpo.cpu import products
from ctpo.cpu.products import fast_products


@pytest.mark.parametrize("rows", [1, 8, 24, 129])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_the_plain_layer(
    monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool, dtype: torch.dtype, transposed: bool
) -> None:
    monkeypatch.setattr(products, "emulates_bfloat16", lambda: True)  # that path on any machine
    monkeypatch.setattr(products, "prefers_transposed", lambda: transposed)
    monkeypatch.setattr(products, "_BLOCK", 5 * 48)  # several blocks, the last one smaller
    monkeypatch.setattr(products, "_LARGE", 60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 33, bias), nn.Linear(33, 67, bias)).to(dtype)
    x = torch.randn(rows, 2, 48, dtype=dtype)
    plain = model(x)
    with torch.no_grad(), fast_products(model):
        fast = model(x)
    assert fast.shape == plain.shape
    # Sums are rounded once to bfloat16 on either path, but in another order before: a last place may differ.
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(fast, plain, atol=tolerance, rtol=tolerance)


def test_is_in_use_and_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    own = model[1].forward = lambda x: x  # type: ignore[assignment, method-assign, misc]
    try:
        with fast_products(model):
            assert ("forward" in vars(model[0])) == torch.backends.mkl.is_available()
            assert model[1].forward is own  # somebody else's is not touched
            raise InterruptedError
    except InterruptedError:
        assert "forward" not in vars(model[0])


def test_gradients_flow_as_ever() -> None:
    layer = nn.Linear(16, 16, dtype=torch.bfloat16)
    with fast_products(layer):
        layer(torch.randn(16, 16, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


def test_a_weight_updated_in_between_is_read_anew() -> None:
    layer = nn.Linear(16, 16)
    x = torch.randn(16, 16)
    with torch.no_grad(), fast_products(layer):
        before = layer(x)
        layer.weight.mul_(2.0)
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (before - layer.bias))
