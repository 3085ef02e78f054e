"""Attention by the heads that share a key head, against transformers' own, which copies the keys for each head."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ctpo.rollout.local.attention import _attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_the_attention_of_transformers(groups: int, tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 4, 2, 70, 16, generator=generator, dtype=dtype)
    query = torch.randn(4, tokens, 2 * groups, 16, generator=generator, dtype=dtype).transpose(1, 2)
    mask = torch.rand(4, 1, tokens, 70, generator=generator) < 0.7
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)

    ours, _ = _attention(module, query, key, value, mask, scaling=0.3)
    theirs, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)

    torch.testing.assert_close(ours, theirs)
