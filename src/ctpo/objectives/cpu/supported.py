"""Which calls the C pass can take."""

from __future__ import annotations

import torch
from torch import Tensor

from ctpo.objectives.cpu import native


def takes_native(backend: str, *tensors: Tensor) -> bool:
    """Whether the C pass runs a call whose objective it knows.

    It reads plain memory, so every tensor must be an ordinary dense one on the CPU.
    """
    if torch.compiler.is_compiling() or not all(_is_plain(x) for x in tensors):
        return False
    return native.available() if backend == "auto" else native.library() is not None


def _is_plain(x: Tensor) -> bool:
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.layout is torch.strided
