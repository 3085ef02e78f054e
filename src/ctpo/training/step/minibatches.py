"""Which responses go into which mini-batch, the same for one process and for many.

TRL shuffles rows with each process's own random state, so the mini-batches of two processes hold other responses
than those of one. Dealing them out in order needs no randomness: prompts come shuffled, and the samples of a
prompt are exchangeable.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid


def deal(batch: dict[str, Any], parts: int, updates: int, group: int) -> list[dict[str, Any]]:
    """Split a rollout batch into mini-batches, and those into micro-batches.

    Args:
        batch: one entry a row, groups of samples of a prompt contiguous.
        parts: micro-batches in all; it divides the rows.
        updates: mini-batches, each of `parts / updates` consecutive micro-batches.
        group: samples a prompt.
    """
    batch = split_pixel_values_by_grid(batch)
    rows = len(next(value for value in batch.values() if value is not None))
    order = dealt_order(rows, updates, group)
    dealt = {name: _reorder(value, order) for name, value in batch.items()}
    return [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(dealt, parts)]


def dealt_order(rows: int, minibatches: int, group: int) -> Tensor:
    """Row indices, mini-batch after mini-batch: unit u (a prompt's group, or a share of one where a mini-batch is
    smaller) goes to mini-batch u mod `minibatches`.

    Each process holds a contiguous part of the groups whose size is a multiple of `minibatches` units, so its
    units go where they would in one process, as long as the unit is the same there.
    """
    unit = math.gcd(group, rows // minibatches)
    return torch.arange(rows).reshape(-1, minibatches, unit).transpose(0, 1).reshape(-1)


def _reorder(value: Any, order: Tensor) -> Any:
    if value is None or (isinstance(value, Tensor) and value.ndim == 0):
        return value
    return value[order.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in order.tolist()]
