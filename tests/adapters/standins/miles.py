"""miles: scoring, zig-zag offsets, the reducer, and the parallel state."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from . import zigzag

RolloutBatch = dict[str, Any]


@dataclass
class GroupInfo:
    rank: int
    size: int
    group: Any


@dataclass
class ParallelState:
    cp: GroupInfo


_STATE = ParallelState(GroupInfo(0, 1, None))


def set_parallel_state(state: ParallelState) -> None:
    global _STATE
    _STATE = state


def get_parallel_state() -> ParallelState:
    return _STATE


def get_logits_and_tokens_offset_with_cp(
    total_length: int,
    response_length: int,
    qkv_format: str = "thd",
    max_seq_len: int | None = None,
    cp_rank: int | None = None,
    cp_size: int | None = None,
):  # type: ignore[no-untyped-def]
    rank = _STATE.cp.rank if cp_rank is None else cp_rank
    world = _STATE.cp.size if cp_size is None else cp_size
    length = total_length if qkv_format == "thd" or max_seq_len is None else max_seq_len
    return zigzag.shards(total_length, response_length, length, rank, world)


def get_sum_of_sample_mean(
    total_lengths: list[int],
    response_lengths: list[int],
    loss_masks: list[Tensor],
    calculate_per_token_loss: bool = False,
    qkv_format: str = "thd",
    max_seq_lens: list[int] | None = None,
    *,
    denominators: list[Tensor] | Tensor | None = None,
) -> Callable[[Tensor], Tensor]:
    lengths = max_seq_lens if qkv_format == "bshd" and max_seq_lens else total_lengths
    columns = [
        zigzag.response_columns(total, response, length, _STATE.cp.rank, _STATE.cp.size)
        for total, response, length in zip(total_lengths, response_lengths, lengths, strict=True)
    ]
    counts = [mask.sum() for mask in loss_masks] if denominators is None else denominators
    return zigzag.reducer(columns, loss_masks, counts, calculate_per_token_loss)


def get_log_probs_and_entropy(
    logits: Tensor,
    *,
    args: Namespace,
    unconcat_tokens: list[Tensor],
    total_lengths: list[int],
    response_lengths: list[int],
    with_entropy: bool = False,
    entropy_requires_grad: bool = True,
    non_loss_data: bool = True,
    max_seq_lens: list[int] | None = None,
) -> dict[str, list[Tensor]]:
    found = zigzag.score(
        logits, unconcat_tokens, total_lengths, response_lengths, _STATE.cp.rank, _STATE.cp.size
    )
    return {"log_probs": found}


def policy_loss_function(
    args: Namespace,
    batch: RolloutBatch,
    logits: Tensor,
    sum_of_sample_mean: Callable[[Tensor], Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Only its signature is used: a custom loss has the same."""
    raise NotImplementedError
