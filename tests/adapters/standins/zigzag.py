"""Zig-zag shards as slime and miles cut them: 2W chunks, rank r has chunks r and 2W − 1 − r of each sequence.

Position p of the logits scores token p + 1, so a response of R tokens after P of prompt is scored by positions
P − 1 … P + R − 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import log_softmax_of

Range = tuple[int, int]


def shards(total: int, response: int, length: int, rank: int, world: int) -> tuple[int, Any, Any, Any]:
    size = -(-length // (2 * world))
    chunks = [(k * size, (k + 1) * size) for k in (rank, 2 * world - 1 - rank)]
    scored: list[Range] = []
    for low, high in chunks:
        start, end = max(low, total - response - 1), min(high, total - 1)
        scored.append((start, end) if start < end else (0, 0))
    tokens = [(start + 1, end + 1) if start < end else (0, 0) for start, end in scored]
    return size, tuple(chunks), tuple(scored), tuple(tokens)


def response_columns(total: int, response: int, length: int, rank: int, world: int) -> Tensor:
    """Positions in the response of the tokens a rank scores."""
    if world == 1:
        return torch.arange(response)
    _, _, scored, _ = shards(total, response, length, rank, world)
    return torch.cat([torch.arange(start, end) for start, end in scored]) - (total - response - 1)


def reducer(
    columns: list[Tensor], masks: list[Tensor], denominators: Any, per_token: bool
) -> Callable[..., Tensor]:
    def reduce(x: Tensor) -> Tensor:
        total = x.sum() * 0
        for values, at, mask, count in zip(
            x.split([len(at) for at in columns]), columns, masks, denominators, strict=True
        ):
            total = total + (values * mask[at]).sum() / (1 if per_token else count.clamp(min=1))
        return total

    return reduce


def score(
    logits: Tensor, tokens: list[Tensor], totals: list[int], responses: list[int], rank: int, world: int
) -> Any:
    """Log-probs of each response's tokens on this rank; `logits` [1, t, V] are its chunks, one after the other."""
    found, start = [], 0
    for row, total, response in zip(tokens, totals, responses, strict=True):
        if world == 1:
            chunks, scored = [(0, total)], [(total - response - 1, total - 1)]
        else:
            _, chunks, scored, _ = shards(total, response, total, rank, world)  # type: ignore[assignment]
        values = []
        for (low, high), (first, last) in zip(chunks, scored, strict=True):
            here = logits[0, start + first - low : start + last - low] if first < last else logits[0, :0]
            values.append(log_softmax_of(here, row[first + 1 : last + 1] if first < last else row[:0]))
            start += high - low
        found.append(torch.cat(values))
    return found
