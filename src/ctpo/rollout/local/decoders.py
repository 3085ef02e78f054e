"""Running a model over a batch of sequences that grow.

Shape legend: B rows, D distinct prompts, C tokens fed at once, W width of the cache, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ctpo.rollout.local.cache import RaggedLayer, Slots, growing_cache, ragged_cache, select_rows

_WORTH_SHARING = 16
"""Tokens of a beginning common to all prompts from which it is read in a pass of its own."""


class Decoder(Protocol):
    """A batch of sequences inside a model."""

    feeds_chunks: bool
    """Whether `feed` works."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts, equal ones once; return the logits after each, [B, V]."""

    def step(self, tokens_B: Tensor, active_B: Tensor) -> Tensor:
        """Append one token a row (rows that are not active stay as long as they are); return logits [B, V]."""

    def feed(self, rows: Sequence[int], chunks: Sequence[Sequence[int]]) -> None:
        """Append a chunk of tokens to some rows."""

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows, in this order."""


def _common(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of these begin with."""
    ordered = sorted(map(tuple, texts))
    first, last = ordered[0], ordered[-1]  # in the order of dictionaries nothing lies further apart
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))


def decoder_for(model: PreTrainedModel, pad: int) -> Decoder:
    """The ragged decoder where the model's attention allows it, else the padded one."""
    return RaggedDecoder(model, pad) if _runs_ragged(model) else PaddedDecoder(model, pad)


class RaggedDecoder:
    """Every row has its own length: column j of the cache holds the row's token j, whatever the others do.

    So a row can take in a chunk (a tool's output) in one forward pass of its own while the others wait, and no
    column is padding.
    """

    feeds_chunks = True

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        self._model, self._pad, self._device = model, pad, model.device
        self._slots = Slots()
        self._slots.dtype = _autocast_dtype(model.device)
        self._cache = ragged_cache(model.config, self._slots)
        self._length_B = torch.zeros(0, dtype=torch.long, device=self._device)
        self._width = 0  # the largest length, kept on the host so that a step need not wait for the device

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        index = {prompt: i for i, prompt in enumerate(distinct)}
        # All but the last token. What all prompts begin with (system message, worked examples) is read once.
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
        """Fill the empty cache."""
        self._length_B = torch.tensor([len(text) for text in texts], device=self._device)
        self._width = max(map(len, texts))
        if self._width:
            ids = self._padded(texts)  # at the end, where nothing that counts looks
            self._forward(ids, torch.arange(self._width, device=self._device).expand_as(ids), None)

    def step(self, tokens_B: Tensor, active_B: Tensor) -> Tensor:
        logits = self._forward(tokens_B[:, None], self._length_B[:, None], self._length_B + 1)
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
            self._forward(ids, columns, start_B)
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

    def _forward(self, ids: Tensor, columns: Tensor, visible: Tensor | None) -> Tensor:
        """Logits after the last column, [b, V]; `visible` None means that the cache was empty."""
        fresh = visible is None
        width = ids.shape[1] if fresh else self._width + ids.shape[1]
        self._slots.aim(columns, width)
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        output = self._model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids) if fresh else self._mask(columns, width),
            # Padding may stick out of the model's context; where it points to is of no account.
            position_ids=columns if limit is None else columns.clamp(max=limit - 1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _mask(self, columns: Tensor, width: int) -> Tensor:
        """Each token sees its row's tokens up to itself, [b, 1, C, W]; those after it are another time's."""
        seen = torch.arange(width, device=self._device) <= columns[:, None, :, None]
        if self._model.config._attn_implementation == "sdpa":
            return seen
        lowest = torch.finfo(self._model.dtype).min
        return torch.zeros(seen.shape, dtype=self._model.dtype, device=self._device).masked_fill_(
            ~seen, lowest
        )


class PaddedDecoder:
    """All rows have one width, prompts padded on the left: for models whose cache or mask is of another kind."""

    feeds_chunks = False

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        self._model, self._pad = model, pad
        self._cache: Any = growing_cache(model.config)
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
        raise NotImplementedError("rows of one width grow together; feed one token a step")

    def keep(self, rows_B: Tensor) -> None:
        select_rows(self._cache, rows_B)
        self._mask = self._mask[rows_B]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        extra = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **extra,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


_known: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def _runs_ragged(model: PreTrainedModel) -> bool:
    if model not in _known:
        _known[model] = model.config._attn_implementation in ("sdpa", "eager") and _agrees(model)
    return _known[model]


def _agrees(model: PreTrainedModel) -> bool:
    """Whether ragged rows give what plain forward passes give, tried on a few tokens.

    Whether a model takes a mask with rows of its own and reads positions from `position_ids` is written nowhere
    in its configuration, and one that ignores either does so silently.
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
