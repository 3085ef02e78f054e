"""Which tokens can end a call, as a table that is kept as long as the tokenizer lives."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_Key = tuple[str, int, int, torch.device]
_tables: WeakKeyDictionary[PreTrainedTokenizerBase, dict[_Key, Tensor]] = WeakKeyDictionary()


def closing_tokens(
    tokenizer: PreTrainedTokenizerBase, characters: str, vocabulary: int, device: torch.device
) -> Tensor:
    """For each token id, whether its text has one of the characters, [V]. Only such a token can end a call.

    The table is made once, because all tokens are decoded for it.

    Args:
        vocabulary: how many token ids the model has, which may be more than the tokenizer has.
    """
    tables = _tables.setdefault(tokenizer, {})
    key = (characters, len(tokenizer), vocabulary, device)
    if key not in tables:
        texts = tokenizer.decode([[i] for i in range(len(tokenizer))])
        table = torch.zeros(max(vocabulary, len(texts)), dtype=torch.bool)
        table[: len(texts)] = torch.tensor([any(c in text for c in characters) for text in texts])
        tables[key] = table.to(device)
    return tables[key]
