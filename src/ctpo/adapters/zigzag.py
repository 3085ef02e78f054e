"""The loss of slime and miles, for responses that a context-parallel group holds in zig-zag shards.

Each of W ranks holds two chunks of every sequence: sequence i is padded to 2W chunks of s_i tokens, and rank r holds
chunks r and 2W − 1 − r. Log-probs exist only for the response, so the ranks hold different numbers of them. Here they
are put into slots, one per token of the chunks, and every rank has Σ_i 2 s_i slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import objective_for, refuse
from ctpo.errors import UserError
from ctpo.objectives import SequenceShard, turns_of

Reducer = Callable[[Tensor], Tensor]
_OTHERS = {"use_kl_loss": False, "entropy_coef": 0.0, "use_tis": False, "use_opsm": False}
"""Settings that act inside the policy loss of slime and miles, with the values that switch them off."""


@dataclass(frozen=True)
class Host:
    """The functions of a trainer of this family."""

    size: int
    """W, the number of ranks that share a sequence."""
    group: Callable[[], Any]
    """Returns their process group."""
    offsets: Callable[[int, int, int | None], Any]
    """From the lengths (total, response, longest of the batch) to the chunk size, the rank's two chunks, and the parts
    of those chunks that score the response."""
    score: Callable[..., list[Tensor]]
    """From logits to the log-probs of each response's tokens on this rank."""


@dataclass(frozen=True)
class Slots:
    """The N slots of this rank, and where its n response tokens sit in them."""

    index: Tensor
    """The slot of each response token, [n]."""
    response: Tensor
    """The place of each response token in the concatenated responses, [n]."""
    segment_ids: Tensor
    """The sequence that each slot belongs to, [N]."""
    positions: Tensor
    """The position of each slot in the concatenated, padded sequences, [N]."""

    def fill(self, values: Tensor) -> Tensor:
        """The values [n] in their slots [N], and 0 in the others. Gradients pass through."""
        return values.new_zeros(self.segment_ids.shape[0]).index_copy(0, self.index, values)


def slots(
    host: Host, totals: list[int], responses: list[int], longest: list[int | None], device: Any
) -> Slots:
    """The slots of all sequences. With one rank there is one slot per response token."""
    columns: list[list[Tensor]] = [[], [], [], []]
    held = placed = before = 0
    for i, (total, response, most) in enumerate(zip(totals, responses, longest, strict=True)):
        prompt = total - response
        # With one rank there is a single chunk: the positions that score the response.
        size, chunks, scored, padded = response, [(prompt - 1, total - 1)], [(prompt - 1, total - 1)], total
        if host.size > 1:
            size, chunks, scored, _ = host.offsets(total, response, most)
            padded = 2 * host.size * size
        for (low, high), (start, end) in zip(chunks, scored, strict=True):
            here = torch.arange(start, end, device=device)
            columns[0].append(held + here - low)
            columns[1].append(before + here - (prompt - 1))
            columns[2].append(torch.full((size,), i, device=device))
            columns[3].append(placed + torch.arange(low, high, device=device))
            held += size
        placed, before = placed + padded, before + response
    return Slots(*(torch.cat(each) for each in columns))


def shard_loss(
    host: Host, args: Any, batch: Any, logits: Tensor, reducer: Reducer
) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's share of the loss, and statistics.

    Args:
        host: the trainer's functions.
        args, batch, logits, reducer: the four arguments of its custom loss.

    Returns:
        The loss, and 0-d tensors that the trainer sums over ranks and divides by its sample count.

    Raises:
        UserError: for a setting that would have no effect on this loss.
    """
    refuse(args, "args", **_OTHERS)
    settings = getattr(args, "ctpo", None) or {}
    objective = objective_for(settings.get("preset", "ctpo"), settings.get("knobs") or {})
    lengths = {name: batch[name] for name in ("total_lengths", "response_lengths")}
    logps = torch.cat(host.score(logits, batch, unconcat_tokens=batch["unconcat_tokens"], **lengths))
    old = torch.cat(batch["rollout_log_probs" if args.use_rollout_logprobs else "log_probs"])
    most = batch.get("max_seq_lens") or list(repeat(None, len(lengths["total_lengths"])))
    at = slots(host, lengths["total_lengths"], lengths["response_lengths"], most, logits.device)
    mask = torch.cat(list(batch["loss_masks"]))[at.response] != 0
    # The reducer is linear, so its gradient is the factor that the trainer gives each token.
    ones = torch.ones_like(logps, requires_grad=True)
    (factors,) = torch.autograd.grad(reducer(ones), ones)
    shard = SequenceShard(host.group(), positions=at.positions) if host.size > 1 else None
    sampled = at.fill(mask)
    if objective.needs_turns and shard is not None:
        raise UserError(
            f"context parallel size {host.size} does not show where turns end, which this preset needs; use size 1"
        )
    out = objective(
        at.fill(logps), at.fill(old), at.fill(torch.cat(batch["advantages"])), sampled,
        weights=at.fill(factors), segment_ids=at.segment_ids, shard=shard,
        turn_ids=turns_of(sampled) if shard is None else None,
    )  # fmt: skip
    guards.look(out, logps.detach(), old, mask)
    # A rank without a response token must still run the backward pass, for the collectives of the model.
    loss = out.loss + 0 * logits.sum() if logps.numel() == 0 else out.loss
    share = reducer(torch.ones_like(logps))
    return loss, {"loss": loss.detach(), **{f"ctpo/{k}": v * share for k, v in out.stats.items()}}
