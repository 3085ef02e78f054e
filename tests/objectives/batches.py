"""Batches the tests share: ragged rows with holes, chosen drift, any dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctpo.objectives import Objective, Output


@dataclass
class Batch:
    logps: Tensor
    old: Tensor
    advantages: Tensor
    mask: Tensor

    def to(self, dtype: torch.dtype) -> Batch:
        return Batch(self.logps.to(dtype), self.old.to(dtype), self.advantages.to(dtype), self.mask)

    def rows(self, index: Tensor) -> Batch:
        return Batch(self.logps[index], self.old[index], self.advantages[index], self.mask[index])


def make(
    rows: int = 7, length: int = 33, drift: float = 0.1, seed: int = 0, *, per_token: bool = False
) -> Batch:
    """Ragged rows with holes; the third is empty, the fourth has one token, the fifth has advantage 0."""
    g = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(rows, length, generator=g, dtype=torch.float64)
    old = logps - drift * torch.randn(rows, length, generator=g, dtype=torch.float64)
    mask = torch.rand(rows, length, generator=g) < 0.7
    advantages = torch.randn(rows, generator=g, dtype=torch.float64)
    if rows > 4:
        mask[2] = False
        mask[3] = torch.arange(length) == min(5, length - 1)
        advantages[4] = 0.0
    if per_token:
        advantages = advantages[:, None] * torch.linspace(-1, 1, length, dtype=torch.float64)
    return Batch(logps, old, advantages, mask)


def turns(mask: Tensor, segment_ids: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
    """The turn of each token, where a turn is four sampled tokens. It is −7 outside of the mask."""
    if cu_seqlens is not None:
        segment_ids = torch.arange(len(cu_seqlens) - 1).repeat_interleave(cu_seqlens.diff())
    ids = torch.full(mask.shape, -7)
    counts: dict[int, int] = {}
    for place in mask.nonzero().tolist():
        sequence = place[0] if segment_ids is None else int(segment_ids[place[0]])
        ids[tuple(place)] = counts.get(sequence, 0) // 4
        counts[sequence] = counts.get(sequence, 0) + 1
    return ids


def run(objective: Objective, batch: Batch, **kwargs: object) -> tuple[Output, Tensor]:
    """Output and gradient of the loss. An objective that needs the turns gets those of `turns`."""
    if getattr(objective, "needs_turns", False) and "turn_ids" not in kwargs:
        packing = {name: kwargs.get(name) for name in ("segment_ids", "cu_seqlens")}
        kwargs["turn_ids"] = turns(batch.mask, **packing)  # type: ignore[arg-type]
    logps = batch.logps.clone().requires_grad_()
    out = objective(logps, batch.old, batch.advantages, batch.mask, **kwargs)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(out.loss, logps)
    return out, grad


def same(a: Output, b: Output, rtol: float, atol: float = 0.0, *, but: tuple[str, ...] = ()) -> None:
    """Equal loss, token losses and stats."""
    torch.testing.assert_close(a.loss, b.loss, rtol=rtol, atol=atol)
    torch.testing.assert_close(a.token_loss, b.token_loss, rtol=rtol, atol=atol)
    assert a.stats.keys() == b.stats.keys()
    for name, value in a.stats.items():
        if name not in but:
            torch.testing.assert_close(
                value, b.stats[name], rtol=rtol, atol=max(atol, 1e-12), msg=lambda m, n=name: f"{n}: {m}"
            )
