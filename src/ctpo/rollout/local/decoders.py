"""Running a model over a batch of growing sequences.

Shape legend: B rows, b rows of one forward pass, C tokens fed at once, W columns of the cache, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ctpo.rollout.local.attention import shared_heads
from ctpo.rollout.local.cache import RaggedLayer, Slots, growing_cache, ragged_cache, select_rows

_WORTH_SHARING = 16
"""If all prompts begin with the same tokens, at least this many, those are read once in a pass of their own."""


class Decoder(Protocol):
    """A batch of sequences and the model's cache for them."""

    feeds_chunks: bool
    """Whether `feed` works."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The logits after each prompt, [B, V]. Equal prompts are read once."""

    def step(self, tokens_B: Tensor, active_B: Tensor) -> Tensor:
        """The logits [B, V] after one more token in each row. Rows that are not active keep their length."""

    def feed(self, rows: Sequence[int], chunks: Sequence[Sequence[int]]) -> None:
        """Append a chunk of tokens to each of some rows."""

    def keep(self, rows_B: Tensor) -> None:
        """Continue with these rows, in this order."""


def decoder_for(model: PreTrainedModel, pad: int) -> Decoder:
    """The ragged decoder if the model's attention allows it, otherwise the padded one."""
    return RaggedDecoder(model, pad) if _runs_ragged(model) else PaddedDecoder(model, pad)


class RaggedDecoder:
    """Every row has a length of its own: column j of the cache holds token j of the row.

    So a row can read a chunk, such as a tool's output, in one forward pass of its own while the other rows wait. No
    column is padding.
    """

    feeds_chunks = True

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        self._model, self._pad, self._device = model, pad, model.device
        self._cache_argument = cache_argument(model)
        self._slots = Slots()
        self._slots.dtype = _autocast_dtype(model.device)
        self._cache = ragged_cache(model.config, self._slots)
        self._length_B = torch.zeros(0, dtype=torch.long, device=self._device)
        self._width = 0  # the largest length, on the host, so that a step does not wait for the device

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        index = {prompt: i for i, prompt in enumerate(distinct)}
        # The last token of each prompt comes in a step of its own. The tokens that all prompts begin with (a system
        # message, worked examples) are read once.
        texts = [prompt[:-1] for prompt in distinct]
        shared = _common(texts) if len(texts) > 1 else 0
        if shared < _WORTH_SHARING:
            self._read(texts)
        else:
            self._read([texts[0][:shared]])
            self.keep(torch.zeros(len(texts), dtype=torch.long, device=self._device))
            rest = {row: text[shared:] for row, text in enumerate(texts) if len(text) > shared}
            if rest:
                self.feed(list(rest), list(rest.values()))
        logits = self.step(
            torch.tensor([p[-1] for p in distinct], device=self._device), torch.ones_like(self._length_B)
        )
        expand = torch.tensor([index[tuple(prompt)] for prompt in prompts], device=self._device)
        self.keep(expand)
        return logits[expand]

    def _read(self, texts: Sequence[Sequence[int]]) -> None:
        """Read these texts into the empty cache."""
        self._length_B = torch.tensor([len(text) for text in texts], device=self._device)
        self._width = max(map(len, texts))
        if self._width:
            ids = self._padded(texts)  # on the right, where no real token looks
            self._forward(ids, torch.arange(self._width, device=self._device).expand_as(ids), empty=True)

    def step(self, tokens_B: Tensor, active_B: Tensor) -> Tensor:
        logits = self._forward(tokens_B[:, None], self._length_B[:, None])
        self._length_B = self._length_B + active_B.long()
        self._width += 1
        return logits

    def feed(self, rows: Sequence[int], chunks: Sequence[Sequence[int]]) -> None:
        row_B = torch.tensor(rows, device=self._device)
        ids = self._padded(chunks)
        start_B = self._length_B[row_B]
        columns = start_B[:, None] + torch.arange(ids.shape[1], device=self._device)
        self._slots.rows = row_B
        try:
            self._forward(ids, columns)
        finally:
            self._slots.rows = None
        self._length_B[row_B] += torch.tensor([len(chunk) for chunk in chunks], device=self._device)
        self._width = int(self._length_B.max())

    def keep(self, rows_B: Tensor) -> None:
        select_rows(self._cache, rows_B)
        self._length_B = self._length_B[rows_B]
        self._width = int(self._length_B.max())

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[self._pad] * (width - len(row))] for row in rows], device=self._device)

    def _forward(self, ids: Tensor, columns: Tensor, *, empty: bool = False) -> Tensor:
        """The logits after the last column, [b, V].

        Args:
            ids, columns: token ids and the cache columns that they go to, [b, C].
            empty: whether the cache was empty before.
        """
        width = ids.shape[1] if empty else self._width + ids.shape[1]
        self._slots.set_target(columns, width)
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        mask = torch.ones_like(ids) if empty else self._mask(columns, width)
        with nullcontext() if empty else shared_heads(self._model):
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                # Padding may reach beyond the model's context. Its positions do not matter.
                position_ids=columns if limit is None else columns.clamp(max=limit - 1),
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_argument: self._cache},
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _mask(self, columns: Tensor, width: int) -> Tensor:
        """The attention mask [b, 1, C, W]: each token sees the tokens of its row up to itself."""
        seen = torch.arange(width, device=self._device) <= columns[:, None, :, None]
        if self._model.config._attn_implementation == "sdpa":
            return seen
        lowest = torch.finfo(self._model.dtype).min
        return torch.zeros(seen.shape, dtype=self._model.dtype, device=self._device).masked_fill_(
            ~seen, lowest
        )


class PaddedDecoder:
    """All rows have the same width, and prompts are padded on the left. It works for every kind of cache and mask."""

    feeds_chunks = False

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        self._model, self._pad = model, pad
        self._cache: Any = growing_cache(model.config)
        self._cache_argument = cache_argument(model)
        self._mask = torch.zeros(0)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        index = {prompt: i for i, prompt in enumerate(distinct)}
        device = self._model.device
        width = max(map(len, distinct))
        ids = torch.full((len(distinct), width), self._pad, device=device)
        self._mask = torch.zeros_like(ids)
        for i, prompt in enumerate(distinct):
            ids[i, width - len(prompt) :] = torch.tensor(prompt, device=device)
            self._mask[i, width - len(prompt) :] = 1
        logits = self._forward(ids, (self._mask.cumsum(-1) - 1).clamp(min=0))
        rows = torch.tensor([index[tuple(prompt)] for prompt in prompts], device=device)
        self.keep(rows)
        return logits[rows]

    def step(self, tokens_B: Tensor, active_B: Tensor) -> Tensor:
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        return self._forward(tokens_B[:, None], self._mask.sum(-1, keepdim=True) - 1)

    def feed(self, rows: Sequence[int], chunks: Sequence[Sequence[int]]) -> None:
        raise NotImplementedError("padded rows grow together; append one token per step")

    def keep(self, rows_B: Tensor) -> None:
        select_rows(self._cache, rows_B)
        self._mask = self._mask[rows_B]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        extra: dict[str, Any] = {self._cache_argument: self._cache}
        if self._takes_positions:
            extra["position_ids"] = positions
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def cache_argument(model: PreTrainedModel) -> str:
    """The name under which the model's `forward` takes its key/value cache.

    transformers 5.24 calls it `cache` and announces that `past_key_values` goes with 5.40; earlier versions know
    `past_key_values` only.
    """
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device, or None if autocast is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def _common(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of these texts begin with."""
    ordered = sorted(map(tuple, texts))
    first, last = ordered[0], ordered[-1]  # of sorted texts, the first and the last differ earliest
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


_ragged: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _runs_ragged(model: PreTrainedModel) -> bool:
    if model not in _ragged:
        _ragged[model] = model.config._attn_implementation in ("sdpa", "eager") and _agrees(model)
    return _ragged[model]


def _agrees(model: PreTrainedModel) -> bool:
    """Whether ragged rows give the same logits as plain forward passes, tried on a few tokens.

    A model's configuration does not say whether the model takes a mask with rows of its own and reads positions from
    `position_ids`. A model that ignores either does so silently.
    """
    if any(type(layer) is not RaggedLayer for layer in ragged_cache(model.config, Slots()).layers):
        return False
    vocabulary = model.get_input_embeddings().num_embeddings
    texts = [[(7 * i + 3) % vocabulary for i in range(6)], [(5 * i + 1) % vocabulary for i in range(3)]]
    chunk, last = [2 % vocabulary, 9 % vocabulary, 4 % vocabulary], 8 % vocabulary
    try:
        decoder = RaggedDecoder(model, pad=0)
        decoder.start(texts)
        decoder.feed([1], [chunk])
        device = model.device
        got = decoder.step(torch.tensor([last, last], device=device), torch.ones(2, device=device))
        whole = [[*texts[0], last], [*texts[1], *chunk, last]]
        expected = torch.stack([model(torch.tensor([row], device=device)).logits[0, -1] for row in whole])
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, IndexError):
        return False
    difference = got.float().log_softmax(-1) - expected.float().log_softmax(-1)
    exact = model.dtype == torch.float32 and _autocast_dtype(model.device) is None
    return bool(difference.abs().max() < (1e-3 if exact else 0.5))


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device; None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
