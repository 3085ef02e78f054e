"""The stretches of a piece that may reach a bound; the others need neither positions nor bounds.

Bounds grow along a row, so they are closest to 0 at a stretch's first token: a stretch whose statistic stays within
those is clipped nowhere. A cumulative ratio drifts slowly and meets its bounds in few stretches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ctpo.objectives.pieces import CutRows, Place, WholeRows

MARGIN: Final = 1 - 1e-6
"""For the rounding of a power."""

FEWEST: Final = 1 << 17
"""Tokens of a piece below which the calls of a survey cost more than they save."""

MOST: Final = 0.25
"""Share of the stretches above which all may as well be taken; two buffers of them must fit the place of a piece."""


@dataclass(slots=True)
class Near:
    """Stretches that may reach a bound.

    Attributes:
        index: [k] of the piece's stretches, in order.
        rows: [k] the rows that they belong to.
        before: [k, 1] tokens of the row before each, None where bounds do not depend on positions.
        least, most: extremes of the piece's statistic, zeros of tokens that do not count included.
    """

    index: Tensor
    rows: Tensor
    before: Tensor | None
    least: float
    most: float

    def scale(self, kept: Tensor, power: float, out: Tensor) -> Tensor | None:
        """Scale of their bounds, [k, n], from their usable tokens as 0/1; None where it is 1."""
        if self.before is None:
            return None
        return torch.cumsum(kept, -1, out=out).add_(self.before).pow_(power)


class Survey:
    """Looks over pieces of rows with one advantage each.

    Args:
        pieces: not of a packed stream, whose positions begin anew within a stretch.
        power: of the position in the bounds, not negative.
        ceiling: least log weight that may be truncated.
    """

    def __init__(self, pieces: WholeRows | CutRows, power: float, ceiling: float) -> None:
        self.pieces, self.power, self.ceiling = pieces, power, ceiling

    def near(
        self, place: Place, x: Tensor, marked: Tensor, low: Tensor, high: Tensor, lengths: Tensor
    ) -> Near | None:
        """Stretches near a bound, or None if there are so many that all may be taken.

        Args:
            place: of the piece.
            x: statistic, 0 where a token does not count; a buffer of the pieces.
            marked: mask as 0/1; a buffer of the pieces.
            low, high: [rows, 1] bounds at t = 1.
            lengths: receives the tokens of each row, unless None is returned.
        """
        values = self.pieces.stretches(x)
        least, most, counts = (
            part.view(len(low), -1)
            for part in (values.amin(-1), values.amax(-1), self.pieces.stretches(marked).sum(-1))
        )
        before = None
        if self.power:
            before = counts.cumsum(-1).sub_(counts).add_(self.pieces.tokens_before(place))
            closest = before.add(1).pow_(self.power).mul_(MARGIN)
            low, high = low * closest, high * closest
        index = ((least < low) | (most > high.clamp(max=self.ceiling))).view(-1).nonzero().view(-1)
        if len(index) > MOST * len(values):
            return None
        torch.sum(counts, -1, out=lengths)
        rows = index.div(counts.shape[1], rounding_mode="floor")
        if before is not None:
            self.pieces.pass_over(place, lengths)
            before = before.view(-1, 1)[index]
        return Near(index, rows, before, float(least.min()), float(most.max()))
