"""Which path runs a call: the definition, or the C pass on the CPU."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from ctpo.objectives.cpu import native
from ctpo.objectives.layouts.packed import Packed
from ctpo.objectives.layouts.padded import Layout, Padded

BACKENDS: Final = ("auto", "native", "compose")


def takes_native(backend: str, layout: Layout, *tensors: Tensor) -> bool:
    """Whether the C pass runs a call whose objective it knows.

    It reads plain memory, so every tensor must be an ordinary dense one on the CPU.
    """
    if backend == "compose" or not isinstance(layout, (Padded, Packed)):
        return False
    if torch.compiler.is_compiling() or not all(_is_plain(x) for x in tensors):
        return False
    return native.available() if backend == "auto" else native.library() is not None


def _is_plain(x: Tensor) -> bool:
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.layout is torch.strided
