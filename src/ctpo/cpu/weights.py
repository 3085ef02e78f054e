"""A float32 model that multiplies in bfloat16 while it samples.

Autocast converts a weight to bfloat16 at every call, which in a decoding step costs more than the product. Here the
weight of each linear layer is converted once. What lies between products (residuals, norms, rotations) stays in
float32, so that sampling rounds in the same places as scoring under autocast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def bfloat16_products(model: nn.Module) -> Iterator[None]:
    """A context under autocast in which the model's plain linear layers hold bfloat16 copies of their weights.

    Afterwards they have their own weights again. Parameters are exchanged and not changed, so optimizers, gradients,
    hooks and ties to other layers do not notice. The copies take half the memory of the linear layers' weights. They
    have no gradient.
    """
    device = next(model.parameters()).device.type
    originals: list[tuple[nn.Linear, nn.Parameter]] = []
    try:
        for layer in model.modules():
            weight = getattr(layer, "weight", None)
            if type(layer) is nn.Linear and type(weight) is nn.Parameter and weight.dtype == torch.float32:
                originals.append((layer, weight))
                layer.weight = nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
        with torch.autocast(device, torch.bfloat16):
            yield
    finally:
        for layer, weight in originals:
            layer.weight = weight
