"""slime: scoring, zig-zag offsets and the reducer that a custom loss is given."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import megatron as mpu
from . import zigzag

RolloutBatch = dict[str, Any]


def get_logits_and_tokens_offset_with_cp(
    total_length: int,
    response_length: int,
):  # type: ignore[no-untyped-def]
    rank, world = mpu.get_context_parallel_rank(), mpu.get_context_parallel_world_size()
    return zigzag.shards(total_length, response_length, total_length, rank, world)


def get_sum_of_sample_mean(
    total_lengths: list[int],
    response_lengths: list[int],
    loss_masks: list[Tensor],
    sample_denoms: list[Tensor] | Tensor | None = None,
    calculate_per_token_loss: bool = False,
) -> Callable[[Tensor], Tensor]:
    rank, world = mpu.get_context_parallel_rank(), mpu.get_context_parallel_world_size()
    columns = [
        zigzag.response_columns(total, response, total, rank, world)
        for total, response in zip(total_lengths, response_lengths, strict=True)
    ]
    counts = [mask.sum() for mask in loss_masks] if sample_denoms is None else sample_denoms
    return zigzag.reducer(columns, loss_masks, counts, calculate_per_token_loss)


def get_rollout_top_p_logprob_kwargs(args: Namespace, batch: dict[str, Any]) -> dict[str, Any]:
    return {}


def get_log_probs_and_entropy(
    logits: Tensor,
    *,
    args: Namespace,
    unconcat_tokens: list[Tensor],
    total_lengths: list[int],
    response_lengths: list[int],
    with_entropy: bool = False,
    non_loss_data: bool = True,
    top_p_token_ids: list[list[int]] | None = None,
    top_p_token_offsets: list[list[int]] | None = None,
) -> dict[str, list[Tensor]]:
    rank, world = mpu.get_context_parallel_rank(), mpu.get_context_parallel_world_size()
    found = zigzag.score(logits, unconcat_tokens, total_lengths, response_lengths, rank, world)
    # The trainer returns a pair, whatever its annotation says.
    return logits.new_empty(0), {"log_probs": found}  # type: ignore[return-value]


def policy_loss_function(
    args: Namespace,
    batch: RolloutBatch,
    logits: Tensor,
    sum_of_sample_mean: Callable[[Tensor], Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Only its signature is used: a custom loss has the same."""
    raise NotImplementedError
