"""The growing cache against transformers' own cache."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from ctpo.rollout.local.cache import GrowingLayer, growing_cache, select_rows


def test_equals_the_dynamic_cache_through_growth_selection_and_repeats(embedded: Any) -> None:
    model, _ = embedded
    ours, theirs = growing_cache(model.config), DynamicCache(config=model.config)
    assert all(isinstance(layer, GrowingLayer) for layer in ours.layers)
    generator = torch.Generator().manual_seed(0)
    rows = 3
    for step, length in enumerate([5, 1, 1, 60, 1, 90, 1]):  # passes the first room and the doubled one
        if step in (2, 5):
            keep = torch.tensor([2, 0, 0, 1])[: rows + 1]
            select_rows(ours, keep)
            select_rows(theirs, keep)
            rows = len(keep)
        for layer in range(model.config.num_hidden_layers):
            new = torch.randn(2, rows, 4, length, 12, generator=generator)
            for got, expected in zip(
                ours.update(new[0], new[1], layer), theirs.update(new[0], new[1], layer), strict=True
            ):
                assert torch.equal(got, expected)
    assert ours.get_seq_length() == theirs.get_seq_length() == 159


def test_a_token_costs_its_own_write_not_a_copy(embedded: Any) -> None:
    model, _ = embedded
    cache = growing_cache(model.config)
    key = torch.randn(1, 4, 1, 12)
    first, _ = cache.update(key, key, 0)
    second, _ = cache.update(key, key, 0)
    assert first.data_ptr() == second.data_ptr()
