"""A float32 model that multiplies in bfloat16 for as long as it samples.

Autocast turns a weight into bfloat16 at every call, which at decode time costs more than the product. Here each
linear layer's weight is turned once; what lies between products (residuals, norms, rotations) stays in float32, so
that sampling rounds where scoring under autocast does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def bfloat16_products(model: nn.Module) -> Iterator[None]:
    """Within, the model's plain linear layers hold bfloat16 copies, under autocast; then their own weights again.

    Parameters are exchanged, not changed: optimizers, gradients, hooks and ties to other layers see nothing of it.
    Memory: half of the linear layers' weights. Without gradient only.
    """
    device = next(model.parameters()).device.type
    held: list[tuple[nn.Linear, nn.Parameter]] = []
    try:
        for layer in model.modules():
            weight = getattr(layer, "weight", None)
            if type(layer) is nn.Linear and type(weight) is nn.Parameter and weight.dtype == torch.float32:
                held.append((layer, weight))
                layer.weight = nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
        with torch.autocast(device, torch.bfloat16):
            yield
    finally:
        for layer, weight in held:
            layer.weight = weight
