"""The bins of a profile: positions of a response, and values of a log ratio."""

from __future__ import annotations

from typing import Final

BINS: Final = 32

_OCTAVES: Final = (-12, 4)
_MAGNITUDES: Final = [2 ** (half / 2) for half in range(2 * _OCTAVES[0], 2 * _OCTAVES[1] + 1)]
CELL_EDGES: Final = [-edge for edge in reversed(_MAGNITUDES)] + _MAGNITUDES
"""66 edges of 67 cells of a log ratio, nats: ±2^(k/2) from 2^−12 to 16, so that a cell is 41 % wide at any scale.
The first cell is everything up to the first edge, the last everything above the last."""


def position_edges(longest: int) -> list[int]:
    """Upper ends, in tokens, of at most 32 bins over 1..longest: single positions first, then in equal ratio.

    A log ratio's spread is a power of t, so equal ratios are equal steps of it, at 40 tokens as at 8,000.
    """
    edges = {round(longest ** (k / (BINS - 1))) for k in range(BINS)}
    return sorted(edges | {longest})
