"""Attention over a cache in which several query heads share a key head.

With a mask, transformers copies every key and value once per query head before it attends. In a decoding step that is
as much work as the attention itself. PyTorch's CPU kernel reads the shared heads in place.

Where each row has one query, as in a decoding step, the heads that share a key head are its queries instead. Attention
is the same, and its products are of matrices. PyTorch multiplies a matrix and a vector in bfloat16 by a plain loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

_NAME: Final = "ctpo_shared_heads"


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The result [b, tokens, heads, width] of queries [b, heads, tokens, width], and no attention weights."""
    batch, heads, tokens, width = query.shape
    key_heads = key.shape[1]
    if tokens == 1:  # the key heads' queries: [b, key heads, heads per key head, width]
        query = query.reshape(batch, key_heads, heads // key_heads, width)
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=query.shape[1] != key_heads
    )
    return out.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)


@contextmanager
def shared_heads(model: PreTrainedModel) -> Iterator[None]:
    """A context in which the model attends by a mask of its caller's without copies of its keys.

    It changes nothing on a GPU, whose fast kernels do not take shared heads with a mask, and where no heads are shared.
    """
    config = model.config.get_text_config()
    heads, key_heads = (
        getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")
    )
    before = config._attn_implementation
    if model.device.type != "cpu" or before != "sdpa" or key_heads in (None, heads):
        yield
        return
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
