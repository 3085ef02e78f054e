"""A key/value cache that grows in place.

transformers' `DynamicLayer` concatenates at every token, copying the whole cache each time. This one doubles
its room when full and hands out views, so a token costs its own write. Layers of another kind (sliding
windows, linear attention) are left as transformers made them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

_FIRST_ROOM = 64  # positions; small enough to waste little, large enough to double seldom


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values, [batch, heads, length, head_dim], as views into buffers with room to spare."""

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_room = self._value_room = None
        length = self.get_seq_length()
        new_length = length + key_states.shape[-2]
        self._key_room, self.keys = _append(self._key_room, self.keys, key_states, length, new_length)
        self._value_room, self.values = _append(
            self._value_room, self.values, value_states, length, new_length
        )
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._key_room = self._value_room = None
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._key_room = self._value_room = None
        super().batch_select_indices(indices)


def _append(
    room: Tensor | None, held: Tensor, new: Tensor, length: int, new_length: int
) -> tuple[Tensor, Tensor]:
    if room is None or room.shape[-2] < new_length:
        capacity = max(_FIRST_ROOM, 2 * new_length)
        grown = new.new_empty(*new.shape[:-2], capacity, new.shape[-1])
        if length:
            grown[..., :length, :] = held
        room = grown
    room[..., length:new_length, :] = new
    return room, room[..., :new_length, :]


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model of this configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of the batch, in this order (repeats allowed)."""
    with torch.no_grad():
        cache.batch_select_indices(rows)


class Slots:
    """Where the next forward pass writes: shared by the layers of one ragged cache."""

    columns: Tensor
    """[b, C]: for each token its row's column."""
    width: int = 0
    """Columns that the pass may look at."""
    rows: Tensor | None = None
    """[b]: the cache rows of this pass; None for all, in order."""
    where: Tensor
    """[b, 1]: the same, written out."""
    dtype: torch.dtype | None = None
    """What keys and values are kept in; None for what they come in. Attention under autocast would turn the whole
    cache into its dtype at every token."""

    def aim(self, columns: Tensor, width: int) -> None:
        """Set where the next pass writes and how far it looks."""
        self.columns, self.width = columns, width
        rows = torch.arange(len(columns), device=columns.device) if self.rows is None else self.rows
        self.where = rows[:, None]


class RaggedLayer(GrowingLayer):
    """Keys and values of rows of different lengths; each token is written at its own row and column."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_room = self._value_room = None
        self._key_room, self.keys, keys = self._write(self._key_room, self.keys, key_states)
        self._value_room, self.values, values = self._write(self._value_room, self.values, value_states)
        return keys, values

    def _write(self, room: Tensor | None, held: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slots = self._slots
        new = new if slots.dtype is None else new.to(slots.dtype)
        if room is None or room.shape[-2] < slots.width:
            room = _grown(held, new, slots)
        # Transposed, the two indexed dimensions are neighbours, which is the fast case of an indexed write.
        room.transpose(1, 2)[slots.where, slots.columns] = new.transpose(1, 2)
        seen = room[:, :, : slots.width]
        return room, seen, seen if slots.rows is None else seen[slots.rows]


def _grown(held: Tensor, new: Tensor, slots: Slots) -> Tensor:
    length = held.shape[-2] if held.ndim == 4 else 0
    rows = held.shape[0] if length else new.shape[0]
    # Zeros, not whatever memory holds: columns not yet written are masked, but NaN times 0 is NaN.
    grown = new.new_zeros(rows, new.shape[1], max(_FIRST_ROOM, 2 * slots.width), new.shape[-1])
    if length:
        grown[..., :length, :] = held
    return grown


def ragged_cache(config: PreTrainedConfig, slots: Slots) -> DynamicCache:
    """An empty cache whose plain layers are ragged; layers of another kind are left as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [RaggedLayer(slots) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
