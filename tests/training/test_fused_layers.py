"""Our norms and attention give the values and gradients of those they replace, and round no worse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from ctpo.cpu import norms
from ctpo.cpu.norms import fused_norms, rms_norm
from ctpo.tasks.arithmetic import model_path
from ctpo.training.scoring import tree
from ctpo.training.scoring.tree import attend


class WideRMSNorm(nn.Module):
    """An RMS norm scaled by 1 + w, as some families of models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(8)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.weight) * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


def test_norm_equals_its_definition_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "_PIECE", 3 * 16)  # three rows a piece, the last piece of one
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3, torch.float64), (x, weight))
    expected = nn.functional.rms_norm(x, (16,), weight, 1e-3)
    torch.testing.assert_close(rms_norm(x, weight, 1e-3, torch.float64), expected, atol=1e-14, rtol=1e-14)


def test_norms_are_exchanged_only_where_they_are_what_they_are_called() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(model_path())
    model.extra = WideRMSNorm()
    norm, own = model.model.norm, type(model.model.norm).forward
    x = torch.randn(3, norm.weight.numel())
    with fused_norms(model):
        assert "forward" in vars(norm)
        assert "forward" not in vars(model.extra)
        torch.testing.assert_close(norm(x), own(norm, x))
        with torch.autocast("cpu", torch.bfloat16):
            assert norm(x).dtype is torch.bfloat16
            torch.testing.assert_close(norm(x), own(norm, x).bfloat16(), atol=0, rtol=2**-7)
    assert "forward" not in vars(norm)


def _inputs(length: int, keys: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Four query heads on two key heads in bfloat16, a mask with rows of different lengths, and a gradient."""
    torch.manual_seed(0)
    shapes = [(3, 4, length, 16), (3, 2, keys, 16), (3, 2, keys, 16)]
    tensors = [torch.randn(shape).bfloat16().requires_grad_() for shape in shapes]
    before = torch.tensor([1, 5, keys - length])[:, None, None, None]
    mask = torch.arange(keys) <= torch.arange(length)[:, None] + before
    return tensors, mask, torch.randn(3, 4, length, 16).bfloat16()


def _results(out: Tensor, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out))]


@pytest.mark.parametrize("causal", [True, False])
def test_attention_rounds_about_as_torchs(causal: bool) -> None:
    inputs, mask, grad = _inputs(20, 20 if causal else 45)
    given = None if causal else mask
    exact = [each.detach().double().requires_grad_() for each in inputs]
    seen = torch.ones(20, 20, dtype=torch.bool).tril() if causal else mask
    wide = [exact[0], *(each.repeat_interleave(2, 1) for each in exact[1:])]
    expected = _results(scaled_dot_product_attention(*wide, attn_mask=seen), exact, grad)
    actual = _results(attend(*inputs, given), inputs, grad)
    torchs = _results(attend(*inputs, given, whole=False), inputs, grad)
    errors = []
    for ours, theirs, true in zip(actual, torchs, expected, strict=True):
        assert ours.dtype is torch.bfloat16
        error, peer = ((each.double() - true).norm() / true.norm() for each in (ours, theirs))
        errors.append(float(error / peer))
    assert max(errors) < 2.0


def test_attention_goes_by_whole_products_only_in_bfloat16_and_over_few_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torchs: list[Any] = []

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        torchs.append(args)
        return scaled_dot_product_attention(*args, **kwargs)

    monkeypatch.setattr(tree, "scaled_dot_product_attention", noted)

    def is_torchs(dtype: torch.dtype, keys: int, **how: Any) -> bool:
        inputs, mask, _ = _inputs(4, keys)
        torchs.clear()
        attend(*(each.to(dtype) for each in inputs), mask, **how)
        return bool(torchs)

    assert not is_torchs(torch.bfloat16, 40)
    assert is_torchs(torch.float32, 40)
    assert is_torchs(torch.bfloat16, 600)
    assert is_torchs(torch.bfloat16, 40, whole=False)
    assert is_torchs(torch.bfloat16, 40, dropout=0.1)
