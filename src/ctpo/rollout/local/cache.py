"""A key/value cache that grows in place.

transformers' `DynamicLayer` concatenates at every token, which copies the whole cache each time. The layers here
double their buffers when they are full and return views of them, so a token costs only its own write. Layers of
another kind (sliding windows, linear attention) stay as transformers made them.

Shape legend: b rows of one forward pass, C tokens that it writes for each row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

_FIRST_POSITIONS = 64  # in a new buffer; few enough to waste little memory, enough to double rarely


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values, [batch, heads, length, head_dim], as views of longer buffers."""

    keys: Tensor
    values: Tensor

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_buffer = self._value_buffer = None
        length = self.get_seq_length()
        new_length = length + key_states.shape[-2]
        self._key_buffer, self.keys = _append(self._key_buffer, self.keys, key_states, length, new_length)
        self._value_buffer, self.values = _append(
            self._value_buffer, self.values, value_states, length, new_length
        )
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._key_buffer = self._value_buffer = None
        super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._key_buffer = self._value_buffer = None
        super().batch_select_indices(indices)


def _append(
    buffer: Tensor | None, held: Tensor, new: Tensor, length: int, new_length: int
) -> tuple[Tensor, Tensor]:
    """The buffer, a longer one if needed, and its view that ends with the new entries."""
    if buffer is None or buffer.shape[-2] < new_length:
        capacity = max(_FIRST_POSITIONS, 2 * new_length)
        longer = new.new_empty(*new.shape[:-2], capacity, new.shape[-1])
        if length:
            longer[..., :length, :] = held
        buffer = longer
    buffer[..., length:new_length, :] = new
    return buffer, buffer[..., :new_length, :]


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model of this configuration."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep these rows of the batch, in this order. A row may occur several times."""
    with torch.no_grad():
        cache.batch_select_indices(rows)


class Slots:
    """Where the next forward pass writes. All layers of one ragged cache share it."""

    columns: Tensor
    """[b, C]: the cache column of each token."""
    width: int = 0
    """How many columns the pass may read."""
    rows: Tensor | None = None
    """[b]: the cache rows of this pass; None for all rows, in order."""
    row_indices: Tensor
    """[b, 1]: the cache rows of this pass as indices, also if it takes all rows."""
    dtype: torch.dtype | None = None
    """The dtype in which keys and values are kept; None keeps the dtype in which they come. Without it, attention
    under autocast would convert the whole cache at every token."""

    def set_target(self, columns: Tensor, width: int) -> None:
        """Set where the next pass writes, and how many columns it reads."""
        self.columns, self.width = columns, width
        rows = torch.arange(len(columns), device=columns.device) if self.rows is None else self.rows
        self.row_indices = rows[:, None]


class RaggedLayer(GrowingLayer):
    """Keys and values of rows with different lengths. Each token is written to its own row and column."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._key_buffer = self._value_buffer = None
        self._key_buffer, self.keys, keys = self._write(self._key_buffer, self.keys, key_states)
        self._value_buffer, self.values, values = self._write(self._value_buffer, self.values, value_states)
        return keys, values

    def _write(self, buffer: Tensor | None, held: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The buffer, its view of all rows, and the view of this pass's rows, with the new entries written."""
        slots = self._slots
        new = new if slots.dtype is None else new.to(slots.dtype)
        if buffer is None or buffer.shape[-2] < slots.width:
            buffer = _longer_buffer(held, new, slots)
        # After the transposition the two indexed dimensions are neighbours, which makes an indexed write fast.
        buffer.transpose(1, 2)[slots.row_indices, slots.columns] = new.transpose(1, 2)
        seen = buffer[:, :, : slots.width]
        return buffer, seen, seen if slots.rows is None else seen[slots.rows]


def _longer_buffer(held: Tensor, new: Tensor, slots: Slots) -> Tensor:
    length = held.shape[-2] if held.ndim == 4 else 0
    rows = held.shape[0] if length else new.shape[0]
    # Zeros instead of uninitialised memory: unwritten columns are masked, but NaN times 0 is NaN.
    buffer = new.new_zeros(rows, new.shape[1], max(_FIRST_POSITIONS, 2 * slots.width), new.shape[-1])
    if length:
        length = min(
            length, buffer.shape[-2]
        )  # long rows may have left, and with them the need of their columns
        buffer[..., :length, :] = held[..., :length, :]
    return buffer


def ragged_cache(config: PreTrainedConfig, slots: Slots) -> DynamicCache:
    """An empty cache with ragged layers in place of plain ones. Layers of another kind stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [RaggedLayer(slots) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
