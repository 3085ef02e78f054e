"""Which responses go into which minibatch, the same with one process and with many.

TRL shuffles rows with each process's own random state, so the minibatches of two processes hold other responses than
those of one process. Here they are dealt out in order. That needs no randomness, because the prompts are shuffled
already and the responses to one prompt are exchangeable.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid


def deal(batch: dict[str, Any], parts: int, updates: int, group: int) -> list[dict[str, Any]]:
    """The micro-batches of a rollout batch, as TRL's dictionaries, one minibatch after another.

    Args:
        batch: TRL's dictionary, with one entry per response. The responses to one prompt are contiguous.
        parts: the number of micro-batches; it divides the number of responses.
        updates: the number of minibatches; each has `parts / updates` consecutive micro-batches.
        group: the number of responses per prompt.
    """
    batch = split_pixel_values_by_grid(batch)
    rows = len(next(value for value in batch.values() if value is not None))
    order = dealt_order(rows, updates, group)
    dealt = {name: _reorder(value, order) for name, value in batch.items()}
    return [unsplit_pixel_values_by_grid(part) for part in split_tensor_dict(dealt, parts)]


def dealt_order(rows: int, minibatches: int, group: int) -> Tensor:
    """[rows] indices of the responses, one minibatch after another.

    Unit u goes to minibatch u mod `minibatches`. A unit is the group of responses to one prompt, or a part of it where
    a minibatch is smaller than a group. Each process holds a contiguous part of the rollout batch, which is a multiple
    of `minibatches` units. So its units go where they would go in one process, as long as the unit is the same there.

    Args:
        rows: the number of responses in this process.
        minibatches: the number of minibatches.
        group: the number of responses per prompt.
    """
    unit = math.gcd(group, rows // minibatches)
    return torch.arange(rows).reshape(-1, minibatches, unit).transpose(0, 1).reshape(-1)


def _reorder(value: Any, order: Tensor) -> Any:
    if value is None or (isinstance(value, Tensor) and value.ndim == 0):
        return value
    return value[order.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in order.tolist()]
