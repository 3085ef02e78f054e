"""The loss of slime and miles: responses cut into zig-zag shards over a context-parallel group.

Sequence i of n_i tokens is padded to 2W chunks of s_i; rank r holds chunks r and 2W − 1 − r, of which log-probs
exist for the response only, so ranks hold unequally many. In slots of whole chunks all hold Σ_i 2 s_i.
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
from ctpo.objectives import SequenceShard

Reducer = Callable[[Tensor], Tensor]
_OTHERS = {"use_kl_loss": False, "entropy_coef": 0.0, "use_tis": False, "use_opsm": False}
"""Settings that slime and miles apply inside their own policy loss, which this one replaces."""


@dataclass(frozen=True)
class Host:
    """What a trainer of this family provides."""

    size: int
    """W, ranks that share a sequence."""
    group: Callable[[], Any]
    offsets: Callable[[int, int, int | None], Any]
    """(total, response, longest) ↦ chunk size, the rank's two chunks, the parts of them that score the response."""
    score: Callable[..., list[Tensor]]
    """Logits ↦ log-probs of each response's tokens on this rank."""


@dataclass(frozen=True)
class Slots:
    """Where this rank's response tokens sit: [t] into its slots, and what each of N slots is."""

    index: Tensor
    response: Tensor
    """[t] position in the concatenated responses."""
    segment_ids: Tensor
    positions: Tensor

    def fill(self, values: Tensor) -> Tensor:
        """[t] → [N], 0 elsewhere; differentiable."""
        return values.new_zeros(self.segment_ids.shape[0]).index_copy(0, self.index, values)


def slots(
    host: Host, totals: list[int], responses: list[int], longest: list[int | None], device: Any
) -> Slots:
    """Slots of all sequences; with one rank, the responses themselves."""
    columns: list[list[Tensor]] = [[], [], [], []]
    held = placed = before = 0
    for i, (total, response, most) in enumerate(zip(totals, responses, longest, strict=True)):
        prompt = total - response
        # One rank: a single chunk, the positions that score the response.
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
    """This rank's share of the loss.

    Args:
        host: the trainer's functions.
        args, batch, logits, reducer: the four arguments of its custom loss.

    Returns:
        Loss, and 0-d tensors that the trainer sums over ranks and divides by its sample count.

    Raises:
        UserError: for a setting that this loss would drop.
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
    # The reducer is linear, so its slope is the trainer's own denominator of every token.
    ones = torch.ones_like(logps, requires_grad=True)
    (factors,) = torch.autograd.grad(reducer(ones), ones)
    shard = SequenceShard(host.group(), positions=at.positions) if host.size > 1 else None
    out = objective(
        at.fill(logps), at.fill(old), at.fill(torch.cat(batch["advantages"])), at.fill(mask),
        weights=at.fill(factors), segment_ids=at.segment_ids, shard=shard,
    )  # fmt: skip
    guards.look(out, logps.detach(), old, mask)
    # Ranks without a token of the response still run backward, for the collectives of the model.
    loss = out.loss + 0 * logits.sum() if logps.numel() == 0 else out.loss
    share = reducer(torch.ones_like(logps))
    return loss, {"loss": loss.detach(), **{f"ctpo/{k}": v * share for k, v in out.stats.items()}}
