"""What happened at each position of the responses of one rollout batch, as sums from which every figure follows.

Micro-batches are kept as they come and looked at together, so that an update waits for nothing and pays for a few
large operations instead of many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives import Details, Objective
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.numerics import prefix_dtype
from ctpo.training.diagnostics.bins import CELL_EDGES, position_edges

_TOGETHER: Final = 2**18
"""Tokens looked at in one go: some 40 MB of temporaries."""
CELLS: Final = len(CELL_EDGES) + 1
GAIN, HARM = 0, 1
"""Tokens with a positive and with a negative advantage: the upper bound clips one, the lower the other."""


@dataclass(frozen=True)
class Sums:
    """Over the tokens of one or several rollout batches; K bins of position, 67 cells of a log ratio, float64.

    c is the cumulative log ratio of the token's prefix and itself, x the objective's weighing log ratio.
    """

    edges: list[int]
    cells: Tensor
    """[2, K, 67] tokens by sign of their advantage, position, and c."""
    weights: Tensor
    """[67] tokens by x."""
    clipped: Tensor
    """[4, K] tokens inside the trust region, above, dual-clipped, below."""
    moments: Tensor
    """[7, K] sums of t, c, c², x, x², of the slope |A|·e^x, and of what clipping took from it."""

    @property
    def count(self) -> Tensor:
        """[K] tokens."""
        return self.cells.sum(dim=(0, 2))

    def flat(self) -> Tensor:
        """All of them in one row, to send or to save."""
        return torch.cat(
            [part.reshape(-1) for part in (self.cells, self.weights, self.clipped, self.moments)]
        )

    @staticmethod
    def of(flat: Tensor, edges: list[int]) -> Sums:
        """Back from `flat`."""
        shapes = _shapes(len(edges))
        parts = torch.split(flat, [math.prod(shape) for shape in shapes])
        return Sums(edges, *(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))

    def __add__(self, other: Sums) -> Sums:
        return Sums.of(self.flat() + other.flat(), self.edges)


class PositionProfile:
    """Collects one rollout batch.

    Args:
        objective: what clips, at the time of asking.
        longest: tokens no response exceeds.
    """

    def __init__(self, objective: Callable[[], Objective], longest: int) -> None:
        self.edges = position_edges(longest)
        self._objective = objective
        self._waiting: list[dict[str, Tensor]] = []
        self._sums: Tensor | None = None

    def add(
        self, logps: Tensor, anchor: Tensor, advantages: Tensor, mask: Tensor, details: Details | None = None
    ) -> None:
        """Take the rows of one pass; nothing waits for the device here.

        Args:
            logps, anchor: [B, T] log-probs of model and anchor, nats.
            advantages: [B] or [B, T]; tokens of advantage 0 are left out, since nothing could clip them.
            mask: [B, T] model tokens.
            details: of the objective's own call, where asking again would not give the same.
        """
        signal = Padded().expand(advantages).expand_as(logps)
        rows = {"logps": logps, "anchor": anchor} if details is None else dict(vars(details))
        self._waiting.append({**rows, "advantages": signal, "mask": mask})
        if sum(rows["mask"].numel() for rows in self._waiting) >= _TOGETHER:
            self._look()

    def close(self, accelerator: Any) -> Sums | None:
        """The sums since the last call, over all processes; None if nothing came. Every process must call it."""
        self._look()
        empty = torch.zeros(
            sum(map(math.prod, _shapes(len(self.edges)))), dtype=prefix_dtype(accelerator.device)
        )
        mine = empty.to(accelerator.device) if self._sums is None else self._sums
        total = accelerator.gather(mine[None]).sum(dim=0)  # in the order of ranks: the same bits everywhere
        self._sums = None
        sums = Sums.of(total, self.edges)
        return sums if bool(sums.count.sum() > 0) else None

    def state_dict(self) -> dict[str, Any]:
        """What has come since the last `close`."""
        return {"waiting": self._waiting, "sums": self._sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._waiting, self._sums = list(state["waiting"]), state["sums"]

    @torch.no_grad()
    def _look(self) -> None:
        if not self._waiting:
            return
        names = self._waiting[0]
        rows = {name: torch.cat([each[name] for each in self._waiting]) for name in names}
        self._waiting = []
        mask, advantages = rows.pop("mask"), rows.pop("advantages")
        if "logps" in rows:
            details = self._objective().examine(rows["logps"], rows["anchor"], advantages, mask)
        else:
            details = Details(**rows)
        found = sums_of(details, advantages, self.edges).flat()
        self._sums = found if self._sums is None else self._sums + found


def sums_of(details: Details, advantages: Tensor, edges: list[int]) -> Sums:
    """Sums over the kept tokens with an advantage.

    Args:
        details: of padded rows, [B, T].
        advantages: [B, T].
        edges: of the position bins.
    """
    device, bins = details.clip.device, len(edges)
    wide = prefix_dtype(device)
    # One wait for the device a look, and half the work where tools and padding are half of the tokens.
    counted = (details.kept & (advantages != 0)).reshape(-1).nonzero()[:, 0]

    def chosen(values: Tensor) -> Tensor:
        return values.reshape(-1)[counted]

    ends, cell_edges = torch.tensor(edges, device=device), torch.tensor(CELL_EDGES, dtype=wide, device=device)
    position, clip = chosen(details.position), chosen(details.clip).long()
    place = torch.bucketize(torch.arange(edges[-1] + 1, device=device), ends)[position.clamp(max=edges[-1])]
    c = chosen(Padded().prefix_sum(details.log_ratio))
    x, left, signal = (
        chosen(values).to(wide) for values in (details.log_weight, details.log_left, advantages)
    )
    ones, size = torch.ones_like(c), signal.abs()
    weight = x.exp()
    slope, removed = size * weight, size * (weight - left.exp()).clamp_(min=0)

    def table(index: Tensor, values: Tensor, size: int) -> Tensor:
        return torch.zeros(size, dtype=wide, device=device).index_add_(0, index, values)

    side, t = torch.where(signal > 0, GAIN, HARM), position.to(wide)
    cell = (side * bins + place) * CELLS + torch.bucketize(c, cell_edges)
    values = (t, c, c.square(), x, x.square(), slope, removed)
    return Sums(
        edges,
        table(cell, ones, 2 * bins * CELLS).reshape(2, bins, CELLS),
        table(torch.bucketize(x, cell_edges), ones, CELLS),
        table(clip % 4 * bins + place, ones, 4 * bins).reshape(4, bins),
        torch.stack([table(place, each, bins) for each in values]),
    )


def _shapes(bins: int) -> tuple[tuple[int, ...], ...]:
    return (2, bins, CELLS), (CELLS,), (4, bins), (7, bins)
