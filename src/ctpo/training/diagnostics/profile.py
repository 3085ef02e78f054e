"""Statistics by position in the response of one rollout batch, as sums from which every figure follows.

Micro-batches are kept as they come and processed together. So no update waits for the device, and a few large
operations take the place of many small ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives import Details, Objective, turns_of
from ctpo.objectives.layouts.padded import Padded
from ctpo.objectives.numerics import prefix_dtype
from ctpo.training.diagnostics.gradients import GRADIENT_FIGURES
from ctpo.training.diagnostics.pull import signal_and_pull

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
"""The number of tokens processed at once; their temporary tensors take about 80 MB."""
_MEASURED: Final = 8
"""The largest number of positions per bin at which the spread is measured."""


def position_edges(longest: int) -> list[int]:
    """The upper ends, in tokens, of at most 32 position bins over 1..longest.

    The first bins hold one position each; then the ends grow by a constant factor. The spread of a log ratio is a
    power of the position, so it grows by the same factor from bin to bin, at 40 tokens as at 8,000.
    """
    edges = {round(longest ** (k / (BINS - 1))) for k in range(BINS)}
    return sorted(edges | {longest})


ROWS: Final = (
    *("tokens", "position", "log_ratio", "log_ratio_squared", "log_weight", "log_weight_squared"),
    *("weight", "weight_squared", "left", "left_squared", "slope", "slope_removed"),
    *("gain", "gain_size", "gain_removed", "gain_clipped", "harm_size", "harm_removed", "harm_clipped"),
    *("high", "low", "dual", "signal", "pull", "signal_along", "pull_along"),
)
"""What is summed per update and position bin, over its tokens.

t is a token's position, c its cumulative log ratio, x the log ratio that weighs it, w the weight that clipping leaves
of e^x, and A its advantage.

tokens, position, log_ratio, log_ratio_squared, log_weight, log_weight_squared: of 1, t, c, c², x, x².
weight, weight_squared, left, left_squared: of e^x, e^2x, w, w².
slope, slope_removed: of |A|·e^x, and of the part of it that clipping removed, |A|·(e^x − w)⁺.
gain, gain_size, gain_removed, gain_clipped: of 1, |A|, |A|·(1 − w·e^−x)⁺ over the tokens with A > 0, and how many of
    them are clipped. harm_…: the same with A < 0.
high, low, dual: tokens clipped above, below and by the dual bound.
signal, pull, signal_along, pull_along: of |s|, |p|, s·x and p·x, see `pull`. NaN where they cannot be had.
"""
SPLIT: Final = ("signal", "pull", "signal_along", "pull_along")
"""The sums `ROWS` of the split of the gradient's coefficients."""
_ROW: Final = {name: place for place, name in enumerate(ROWS)}


def measured_positions(edges: list[int]) -> Tensor:
    """[K, 8] the positions of each bin at which the spread is measured: all if it has at most 8, and 0 beside them.

    At one position a response has one token, so the tokens are independent of each other. Neighbouring positions hold
    nearly the same log ratio. So a few of them, evenly spaced, are as good as all.
    """
    starts = torch.tensor([0, *edges[:-1]])
    widths, place = torch.tensor(edges) - starts, torch.arange(_MEASURED)
    spaced = ((2 * place + 1) * widths[:, None]) // (2 * _MEASURED)
    offsets = torch.where(widths[:, None] > _MEASURED, spaced, place)
    return torch.where(offsets < widths[:, None], starts[:, None] + 1 + offsets, 0)


@dataclass(frozen=True)
class ProfileSums:
    """Sums over the tokens of one or several rollout batches, in float64, by K position bins and 67 cells."""

    edges: list[int]
    """Upper ends of the position bins, tokens."""
    cells: Tensor
    """[2, K, 67] number of tokens by sign of the advantage, position, and cumulative log ratio."""
    weights: Tensor
    """[67] number of tokens by the log ratio that weighs them."""
    table: Tensor
    """[26, K] the sums `ROWS`."""
    effective: Tensor
    """[2, K] Σ_u (Σ w)²/Σ w² over the updates u, for the weights before and after clipping: tokens."""
    within: Tensor
    """[2, K] the squares of c around the mean of its update and position, and their degrees of freedom."""
    updates: Tensor
    """[U, 1 + 26 + 3] per update: its number from 1, the sums `ROWS` over all bins, and `UpdateGradients.close`."""

    @property
    def count(self) -> Tensor:
        """[K] number of tokens."""
        return self.cells.sum(dim=(0, 2))

    def row(self, name: str) -> Tensor:
        """[K] one of the sums `ROWS`."""
        return self.table[_ROW[name]]

    def update_row(self, name: str) -> Tensor:
        """[U] one of the sums `ROWS` per update."""
        return self.updates[:, 1 + _ROW[name]]

    def flat(self) -> Tensor:
        """All sums in one vector, to save them."""
        parts = (self.cells, self.weights, self.table, self.effective, self.within, self.updates)
        return torch.cat([part.reshape(-1) for part in parts])

    @staticmethod
    def from_flat(flat: Tensor, edges: list[int]) -> ProfileSums:
        """The sums whose `flat` this is."""
        bins = len(edges)
        shapes = ((2, bins, CELLS), (CELLS,), (len(ROWS), bins), (2, bins), (2, bins))
        sizes = [math.prod(shape) for shape in shapes]
        *parts, updates = torch.split(flat, [*sizes, len(flat) - sum(sizes)])
        cells, weights, table, effective, within = (
            part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)
        )
        rows = updates.reshape(-1, 1 + len(ROWS) + GRADIENT_FIGURES)
        return ProfileSums(edges, cells, weights, table, effective, within, rows)

    def __add__(self, other: ProfileSums) -> ProfileSums:
        """The sums of both. Their updates are different ones, so each keeps its own means."""
        return ProfileSums(
            self.edges,
            self.cells + other.cells,
            self.weights + other.weights,
            self.table + other.table,
            self.effective + other.effective,
            self.within + other.within,
            torch.cat([self.updates, other.updates]),
        )


@dataclass(frozen=True, kw_only=True)
class OwnSums:
    """What one process has summed, before the processes are added up."""

    counts: Tensor
    """The histograms in one vector."""
    updates: dict[int, Tensor]
    """The sums of each update by its number."""


def added(parts: Sequence[OwnSums], edges: list[int]) -> ProfileSums | None:
    """The sums of several processes together, without figures of gradients; None if there were no tokens.

    Args:
        parts: of each process.
        edges: upper ends of the position bins, tokens.
    """
    if not parts:
        return None
    numbers = sorted({number for part in parts for number in part.updates})
    counts = torch.stack([part.counts.cpu() for part in parts]).sum(dim=0)
    updates = [
        torch.stack([part.updates[number].cpu() for part in parts if number in part.updates]).sum(dim=0)
        for number in numbers
    ]
    return _closed(counts, torch.cat(updates), numbers, edges, {})


class PositionProfile:
    """Collects the sums of one rollout batch, those of each update apart.

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
        self._counts: Tensor | None = None
        self._updates: dict[int, Tensor] = {}
        self._extremes: Tensor | None = None

    def add(
        self,
        logps: Tensor,
        anchor: Tensor,
        advantages: Tensor,
        mask: Tensor,
        details: Details | None = None,
        *,
        update: int = 0,
        null_size: Tensor | None = None,
    ) -> None:
        """Add the responses of one forward pass. This does not wait for the device.

        Args:
            logps, anchor: [B, T] log-probs of the model and of the anchor, nats.
            advantages: [B] or [B, T]. Tokens whose advantage is 0 are left out, because nothing can clip them.
            mask: [B, T] True where the model sampled the token.
            details: from the objective's own call. Needed if a second call would not give the same.
            update: the number of the update that they belong to. Means and effective sample sizes are of an update.
            null_size: [B] or [B, T] the mean |A| if rewards were dealt out at random (`null_sizes`); None for |A|.
        """
        signal = Padded().expand(advantages).expand_as(logps)
        size = signal.abs() if null_size is None else Padded().expand(null_size).expand_as(logps)
        rows = {"logps": logps, "anchor": anchor} if details is None else dict(vars(details))
        numbers = torch.full((len(logps),), update, device=logps.device)
        self._waiting.append(
            {**rows, "advantages": signal, "mask": mask, "null_size": size, "update": numbers}
        )
        if sum(rows["mask"].numel() for rows in self._waiting) >= _TOGETHER:
            self._process()

    def left_out(self, device: torch.device) -> None:
        """Count responses that were not scored, because nothing in them can be clipped."""
        self._widen(torch.zeros(1, 2, device=device))

    def close(self, accelerator: Any, gradients: Mapping[int, Tensor] | None = None) -> ProfileSums | None:
        """The sums since the last call, over all processes; None if there were no tokens. Every process must call.

        Args:
            accelerator: gathers over processes.
            gradients: the figures of `UpdateGradients.close` per update.
        """
        self._process()
        self.extremes = self._close_extremes(accelerator)
        own = self.take()
        if own is None:
            return None
        numbers = sorted(own.updates)
        mine = torch.cat([own.counts, *(own.updates[number] for number in numbers)])
        total = accelerator.gather(mine[None]).sum(dim=0)  # in order of rank, so that all get the same bits
        split = len(own.counts)
        return _closed(total[:split], total[split:], numbers, self.edges, gradients or {})

    def take(self) -> OwnSums | None:
        """The sums of this process alone since the last call; None if there were none. `added` adds processes up."""
        self._process()
        if self._counts is None:
            return None
        own = OwnSums(counts=self._counts, updates=self._updates)
        self._counts, self._updates = None, {}
        return own

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last `close`, for a checkpoint."""
        return {
            "waiting": self._waiting,
            "counts": self._counts,
            "updates": self._updates,
            "extremes": self._extremes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned. What an earlier release gathered had no updates and is left out."""
        self._extremes = state.get("extremes")
        if "updates" in state:
            self._waiting, self._counts = list(state["waiting"]), state["counts"]
            self._updates = dict(state["updates"])

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
        size, update = rows.pop("null_size"), rows.pop("update")
        other = None
        if "logps" in rows:
            pair, turns = (rows["logps"], rows["anchor"]), turns_of(mask)
            details = self._objective().examine(*pair, advantages, mask, turns)
            if self._objective().row_wise:
                other = self._objective().examine(*pair, -advantages, mask, turns).log_left
        else:
            details = Details(**rows)
        self._widen(clipped_shares(details))
        numbers, update = torch.unique(update, return_inverse=True)
        counts, tables = _sums_of(details, advantages, self.edges, update, len(numbers), size, other)
        self._counts = counts if self._counts is None else self._counts + counts
        for number, table in zip(numbers.tolist(), tables, strict=True):
            held = self._updates.get(number)
            self._updates[number] = table if held is None else held + table


def clipped_shares(details: Details) -> Tensor:
    """[rows, 2] the shares of a response's tokens that are clipped below and above, of responses with tokens."""
    kept = details.kept.sum(dim=1)
    sides = torch.stack([(details.clip == side).sum(dim=1) for side in (-1, 1)], dim=1)
    return (sides / kept.clamp(min=1)[:, None])[kept > 0]


def _sums_of(
    details: Details,
    advantages: Tensor,
    edges: list[int],
    update: Tensor,
    updates: int,
    null_size: Tensor,
    other: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The histograms in one vector, and [U, …] the sums of each update, over the usable tokens with an advantage.

    Args:
        details: of padded responses, [B, T].
        advantages, null_size: [B, T].
        edges: upper ends of the position bins, tokens.
        update: [B] the update of each response, in 0..U−1.
        updates: U.
        other: [B, T] `log_left` if all advantages had the other sign; None if that cannot be had.
    """
    device, bins = details.clip.device, len(edges)
    wide = prefix_dtype(device)
    # `nonzero` waits for the device once, and halves the work where tools and padding make up half of the tokens.
    counted = (details.kept & (advantages != 0)).reshape(-1).nonzero()[:, 0]

    def chosen(values: Tensor) -> Tensor:
        return values.reshape(-1)[counted]

    cell_edges = torch.tensor(CELL_EDGES, dtype=wide, device=device)
    position, clip = chosen(details.position).clamp(max=edges[-1]), chosen(details.clip)
    place = torch.bucketize(torch.arange(edges[-1] + 1), torch.tensor(edges)).to(device)[position]
    number = update[counted // advantages.shape[1]]
    c = chosen(Padded().prefix_sum(details.log_ratio))
    x, log_left, signal = (
        chosen(values).to(wide) for values in (details.log_weight, details.log_left, advantages)
    )
    ones, gain, clipped = torch.ones_like(c), signal > 0, (clip != 0).to(wide)
    size, weight, left = signal.abs(), x.exp(), log_left.exp()
    part = size * (1 - (log_left - x).exp()).clamp_(min=0)
    split = [nothing := torch.full_like(c, math.nan), nothing]
    if other is not None:
        split = list(signal_and_pull(signal, left, chosen(other).to(wide).exp(), chosen(null_size).to(wide)))
    t, up, down = position.to(wide), gain.to(wide), (~gain).to(wide)
    values = (
        *(ones, t, c, c.square(), x, x.square(), weight, weight.square(), left, left.square()),
        *(size * weight, size * (weight - left).clamp_(min=0)),
        *(up, up * size, up * part, up * clipped, down * size, down * part, down * clipped),
        *((clip == code).to(wide) for code in (1, -1, 2)),
        *(each.abs() for each in split),
        *(each * x for each in split),
    )

    def table(index: Tensor, values: Tensor, size: int) -> Tensor:
        return torch.zeros(size, dtype=wide, device=device).index_add_(0, index, values)

    home = number * bins + place
    rows = [table(home, each, updates * bins).reshape(updates, bins) for each in values]
    grid = measured_positions(edges).reshape(-1)
    on_grid = torch.full((edges[-1] + 1,), -1)
    on_grid[grid[grid > 0]] = (grid > 0).nonzero()[:, 0]
    spot = on_grid.to(device)[position]
    here = (spot >= 0).nonzero()[:, 0]
    spots = number[here] * len(grid) + spot[here]
    steps = [
        table(spots, each[here], updates * len(grid)).reshape(updates, -1) for each in (ones, c, c.square())
    ]
    cell = (torch.where(gain, GAIN, HARM) * bins + place) * CELLS + torch.bucketize(c, cell_edges)
    counts = [
        table(cell, ones, 2 * bins * CELLS), table(torch.bucketize(x, cell_edges), ones, CELLS),
    ]  # fmt: skip
    return torch.cat(counts), torch.cat([*rows, *steps], dim=1)


def _closed(
    counts: Tensor, updates: Tensor, numbers: list[int], edges: list[int], gradients: Mapping[int, Tensor]
) -> ProfileSums | None:
    """The sums of a rollout batch from those of its updates, taken over all processes; None without tokens."""
    bins = len(edges)
    updates = updates.reshape(len(numbers), -1)
    rows = updates[:, : len(ROWS) * bins].reshape(len(numbers), len(ROWS), bins)
    n, c, cc = updates[:, len(ROWS) * bins :].reshape(len(numbers), 3, bins, _MEASURED).unbind(dim=1)
    around = torch.where(n > 1, cc - c.square() / n.clamp(min=1), 0.0).clamp(min=0)
    within = torch.stack([around.sum(dim=(0, 2)), (n - 1).clamp(min=0).sum(dim=(0, 2))])
    effective = torch.stack(
        [_effective(rows[:, _ROW[name]], rows[:, _ROW[f"{name}_squared"]]) for name in ("weight", "left")]
    )
    unknown = updates.new_full((GRADIENT_FIGURES,), math.nan)
    figures = torch.stack([gradients.get(number, unknown).to(updates) for number in numbers])
    steps = updates.new_tensor(numbers)[:, None] + 1
    cells, weights = torch.split(counts, [2 * bins * CELLS, CELLS])
    sums = ProfileSums(
        edges,
        cells.reshape(2, bins, CELLS),
        weights,
        rows.sum(dim=0),
        effective,
        within,
        torch.cat([steps, rows.sum(dim=2), figures], dim=1),
    )
    return sums if bool(sums.count.sum() > 0) else None


def _effective(total: Tensor, squares: Tensor) -> Tensor:
    """[K] Σ_u (Σ w)²/Σ w² over the updates u, in tokens; infinite if weights are too small to be squared."""
    return torch.where(total > 0, total.square() / squares, 0.0).sum(dim=0)
