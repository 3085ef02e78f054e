"""The loss for slime: `--loss-type custom_loss --custom-loss-function-path ctpo.adapters.slime.loss`.

With context parallelism every rank holds zig-zag shards of each sequence, cut to the response. `ctpo.adapters.zigzag`
puts them back into shards of one length, and the objective gathers only log ratios, without their gradients.
The settings come from `--custom-config-path`: a YAML file with `ctpo: {preset: ctpo, knobs: {}}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ctpo.adapters.shared import framework
from ctpo.adapters.zigzag import Host, shard_loss

_BACKEND = "slime.backends.megatron_utils"


def host(args: Any) -> Host:
    """The functions of slime that the loss calls, and the context-parallel group."""
    install = "slime from its repository, with megatron-core"
    mpu = framework("megatron.core.mpu", install)
    shards = framework(f"{_BACKEND}.cp_utils", install)
    losses = framework(f"{_BACKEND}.loss", install)
    return Host(
        size=mpu.get_context_parallel_world_size(),
        group=mpu.get_context_parallel_group,
        offsets=lambda total, response, _: shards.get_logits_and_tokens_offset_with_cp(total, response),
        score=lambda logits, batch, **lengths: losses.get_log_probs_and_entropy(
            logits, args=args, **lengths, **losses.get_rollout_top_p_logprob_kwargs(args, batch)
        )[1]["log_probs"],
    )


def loss(
    args: Any, batch: Any, logits: Tensor, sum_of_sample_mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's share of the loss, reduced as `sum_of_sample_mean` does, and its statistics."""
    return shard_loss(host(args), args, batch, logits, sum_of_sample_mean)
