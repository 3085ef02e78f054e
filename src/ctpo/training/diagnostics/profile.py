"""Statistics by position in the response of one rollout batch, as sums from which every figure follows.

Micro-batches are kept as they come and processed together. So no update waits for the device, and a few large
operations take the place of many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives import Details, Objective, turns_of
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.numerics import prefix_dtype

BINS: Final = 32
"""The largest number of position bins."""
_OCTAVES: Final = (-12, 4)
_MAGNITUDES: Final = [2 ** (half / 2) for half in range(2 * _OCTAVES[0], 2 * _OCTAVES[1] + 1)]
CELL_EDGES: Final = [-edge for edge in reversed(_MAGNITUDES)] + _MAGNITUDES
"""The 66 edges of the 67 cells of a log ratio, in nats: ±2^(k/2) from 2^−12 to 16. A cell is 41 % wide at any scale.
The first cell holds everything up to the first edge, the last cell everything above the last edge."""
CELLS: Final = len(CELL_EDGES) + 1
GAIN, HARM = 0, 1
"""Tokens with a positive and with a negative advantage. The upper bound clips the first, the lower the second."""
_TOGETHER: Final = 2**18
"""The number of tokens processed at once; their temporary tensors take about 40 MB."""


def position_edges(longest: int) -> list[int]:
    """The upper ends, in tokens, of at most 32 position bins over 1..longest.

    The first bins hold one position each; then the ends grow by a constant factor. The spread of a log ratio is a
    power of the position, so it grows by the same factor from bin to bin, at 40 tokens as at 8,000.
    """
    edges = {round(longest ** (k / (BINS - 1))) for k in range(BINS)}
    return sorted(edges | {longest})


@dataclass(frozen=True)
class ProfileSums:
    """Sums over the tokens of one or several rollout batches, in float64, by K position bins and 67 cells.

    Notation: t is the token's position, c the cumulative log ratio up to and including the token, x the log ratio
    that weighs the token in the objective, A its advantage.
    """

    edges: list[int]
    """Upper ends of the position bins, tokens."""
    cells: Tensor
    """[2, K, 67] number of tokens by sign of the advantage, position, and c."""
    weights: Tensor
    """[67] number of tokens by x."""
    clipped: Tensor
    """[4, K] number of tokens inside the trust region, clipped above, dual-clipped, and clipped below."""
    moments: Tensor
    """[7, K] sums of t, c, c², x, x², |A|·e^x, and of the part of |A|·e^x that clipping removed."""

    @property
    def count(self) -> Tensor:
        """[K] number of tokens."""
        return self.cells.sum(dim=(0, 2))

    def flat(self) -> Tensor:
        """All sums in one vector, to send to other processes or to save."""
        return torch.cat(
            [part.reshape(-1) for part in (self.cells, self.weights, self.clipped, self.moments)]
        )

    @staticmethod
    def from_flat(flat: Tensor, edges: list[int]) -> ProfileSums:
        """The sums whose `flat` this is."""
        shapes = _shapes(len(edges))
        parts = torch.split(flat, [math.prod(shape) for shape in shapes])
        return ProfileSums(edges, *(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))

    def __add__(self, other: ProfileSums) -> ProfileSums:
        return ProfileSums.from_flat(self.flat() + other.flat(), self.edges)


class PositionProfile:
    """Collects the sums of one rollout batch.

    Args:
        objective: returns the objective in use when it is called.
        longest: a number of tokens that no response exceeds.
    """

    def __init__(self, objective: Callable[[], Objective], longest: int) -> None:
        self.edges = position_edges(longest)
        self.extremes: tuple[float, float] | None = None
        """Of the responses that were closed last: the smallest share of tokens clipped below, and the largest above."""
        self._objective = objective
        self._waiting: list[dict[str, Tensor]] = []
        self._sums: Tensor | None = None
        self._extremes: Tensor | None = None

    def add(
        self, logps: Tensor, anchor: Tensor, advantages: Tensor, mask: Tensor, details: Details | None = None
    ) -> None:
        """Add the responses of one forward pass. This does not wait for the device.

        Args:
            logps, anchor: [B, T] log-probs of the model and of the anchor, nats.
            advantages: [B] or [B, T]. Tokens whose advantage is 0 are left out, because nothing can clip them.
            mask: [B, T] True where the model sampled the token.
            details: from the objective's own call. Needed if a second call would not give the same.
        """
        signal = Padded().expand(advantages).expand_as(logps)
        rows = {"logps": logps, "anchor": anchor} if details is None else dict(vars(details))
        self._waiting.append({**rows, "advantages": signal, "mask": mask})
        if sum(rows["mask"].numel() for rows in self._waiting) >= _TOGETHER:
            self._process()

    def left_out(self, device: torch.device) -> None:
        """Count responses that were not scored, because nothing in them can be clipped."""
        self._widen(torch.zeros(1, 2, device=device))

    def close(self, accelerator: Any) -> ProfileSums | None:
        """The sums since the last call, over all processes; None if there were no tokens. Every process must call."""
        self._process()
        self.extremes = self._close_extremes(accelerator)
        empty = torch.zeros(
            sum(map(math.prod, _shapes(len(self.edges)))), dtype=prefix_dtype(accelerator.device)
        )
        mine = empty.to(accelerator.device) if self._sums is None else self._sums
        total = accelerator.gather(mine[None]).sum(dim=0)  # in order of rank, so that all get the same bits
        self._sums = None
        sums = ProfileSums.from_flat(total, self.edges)
        return sums if bool(sums.count.sum() > 0) else None

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last `close`, for a checkpoint."""
        return {"waiting": self._waiting, "sums": self._sums, "extremes": self._extremes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._waiting, self._sums = list(state["waiting"]), state["sums"]
        self._extremes = state.get("extremes")

    def _widen(self, shares: Tensor) -> None:
        """Take responses into the smallest share below and the largest share above."""
        if len(shares):
            own = torch.stack([shares[:, 0].min(), shares[:, 1].max()]).float()
            held = self._extremes
            self._extremes = (
                own
                if held is None
                else torch.stack([torch.minimum(own[0], held[0]), torch.maximum(own[1], held[1])])
            )

    def _close_extremes(self, accelerator: Any) -> tuple[float, float] | None:
        nothing = torch.tensor([math.inf, -math.inf], device=accelerator.device)
        own = nothing if self._extremes is None else self._extremes
        everyone = accelerator.gather(own[None])
        self._extremes = None
        low, high = float(everyone[:, 0].min()), float(everyone[:, 1].max())
        return (low, high) if math.isfinite(low) else None

    @torch.no_grad()
    def _process(self) -> None:
        """Turn the waiting micro-batches into sums."""
        if not self._waiting:
            return
        names = self._waiting[0]
        rows = {name: torch.cat([each[name] for each in self._waiting]) for name in names}
        self._waiting = []
        mask, advantages = rows.pop("mask"), rows.pop("advantages")
        if "logps" in rows:
            pair = rows["logps"], rows["anchor"]
            details = self._objective().examine(*pair, advantages, mask, turns_of(mask))
        else:
            details = Details(**rows)
        self._widen(clipped_shares(details))
        sums = sums_of(details, advantages, self.edges).flat()
        self._sums = sums if self._sums is None else self._sums + sums


def clipped_shares(details: Details) -> Tensor:
    """[rows, 2] the shares of a response's tokens that are clipped below and above, of responses with tokens."""
    kept = details.kept.sum(dim=1)
    sides = torch.stack([(details.clip == side).sum(dim=1) for side in (-1, 1)], dim=1)
    return (sides / kept.clamp(min=1)[:, None])[kept > 0]


def sums_of(details: Details, advantages: Tensor, edges: list[int]) -> ProfileSums:
    """The sums over all usable tokens whose advantage is not 0.

    Args:
        details: of padded responses, [B, T].
        advantages: [B, T].
        edges: upper ends of the position bins, tokens.
    """
    device, bins = details.clip.device, len(edges)
    wide = prefix_dtype(device)
    # `nonzero` waits for the device once, and halves the work where tools and padding make up half of the tokens.
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
    return ProfileSums(
        edges,
        table(cell, ones, 2 * bins * CELLS).reshape(2, bins, CELLS),
        table(torch.bucketize(x, cell_edges), ones, CELLS),
        table(clip % 4 * bins + place, ones, 4 * bins).reshape(4, bins),
        torch.stack([table(place, each, bins) for each in values]),
    )


def _shapes(bins: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of the parts of `ProfileSums.flat`."""
    return (2, bins, CELLS), (CELLS,), (4, bins), (7, bins)
