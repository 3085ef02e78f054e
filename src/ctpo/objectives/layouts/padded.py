"""Padded rows: every row of a [B, T] tensor is one sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from ctpo.objectives.layouts.layout import Layout
from ctpo.objectives.numerics import prefix_dtype


class Padded(Layout):
    """Rows of [B, T]. What a row's mask leaves out may lie anywhere in it."""

    def prefix_sum(self, values: Tensor) -> Tensor:
        return values.to(prefix_dtype(values.device)).cumsum(-1)

    def suffix_sum(self, values: Tensor) -> Tensor:
        return values.to(prefix_dtype(values.device)).flip(-1).cumsum(-1).flip(-1)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """[B, 1]."""
        if values.dtype == torch.bool:
            return values.sum(-1, keepdim=True).to(prefix_dtype(values.device))
        return values.to(prefix_dtype(values.device)).sum(-1, keepdim=True)

    def prefix_min_before(self, values: Tensor) -> Tensor:
        running = values.cummin(-1).values
        return torch.cat([torch.full_like(running[..., :1], torch.inf), running[..., :-1]], dim=-1)

    def count_sequences(self, mask: Tensor) -> Tensor:
        return mask.sum(-1).count_nonzero()  # on the CPU this takes a fifth of the time of any()

    def expand(self, values: Tensor) -> Tensor:
        """[B] becomes [B, 1]."""
        return values.unsqueeze(-1) if values.ndim == 1 else values
