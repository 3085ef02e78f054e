"""The loss for miles: `--loss-type custom_loss --custom-loss-function-path ctpo.adapters.miles.loss`.

miles comes from slime and hands over the same shards; see `ctpo.adapters.slime`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ctpo.adapters.shared import framework
from ctpo.adapters.zigzag import Host, shard_loss

_TRAINING = "miles.backends.training_utils"


def host(args: Any) -> Host:
    """The functions of miles that the loss calls, and the context-parallel group."""
    install = "miles from its repository"
    parallel = framework(f"{_TRAINING}.parallel", install).get_parallel_state()
    shards = framework(f"{_TRAINING}.cp_utils", install)
    scoring = framework(f"{_TRAINING}.loss_hub.logit_processors", install)
    return Host(
        size=parallel.cp.size,
        group=lambda: parallel.cp.group,
        offsets=lambda total, response, longest: shards.get_logits_and_tokens_offset_with_cp(
            total, response, args.qkv_format, longest
        ),
        score=lambda logits, batch, **lengths: scoring.get_log_probs_and_entropy(
            logits, args=args, max_seq_lens=batch.get("max_seq_lens"), **lengths
        )["log_probs"],
    )


def loss(
    args: Any, batch: Any, logits: Tensor, sum_of_sample_mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's share of the loss, reduced as `sum_of_sample_mean` does, and its statistics."""
    return shard_loss(host(args), args, batch, logits, sum_of_sample_mean)
