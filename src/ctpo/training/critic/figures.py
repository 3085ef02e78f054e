"""How good a critic's values are: explained variance and loss, over all tokens and by position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SUMS = 6


class ValueSums:
    """Sums over the tokens of one rollout batch by position bin, from which every figure follows.

    The values are those before the critic learned from the response, so the figures are out of sample.

    Args:
        edges: the upper ends of the bins, in tokens.
    """

    def __init__(self, edges: list[int]) -> None:
        self._edges = edges
        self._sums = torch.zeros(_SUMS, len(edges), dtype=torch.float64)

    def add(self, values: Tensor, returns: Tensor, targets: Tensor, mask: Tensor) -> None:
        """Take some rows, [B, T] each.

        Args:
            values: V.
            returns: G, the returns that were observed.
            targets: what V is fitted to.
            mask: boolean, true on the tokens that count.
        """
        place = mask.cumsum(dim=1)[mask].cpu()
        bins = torch.bucketize(place, torch.tensor(self._edges)).clamp(max=len(self._edges) - 1)
        v, g, target = (each[mask].double().cpu() for each in (values, returns, targets))
        rows = torch.stack([torch.ones_like(g), v, g, g**2, (g - v) ** 2, 0.5 * (target - v) ** 2])
        self._sums.index_add_(1, bins, rows)

    def close(self, accelerator: Any) -> tuple[dict[str, float], dict[str, list[float | None]]]:
        """The figures over all tokens, and curves by position, of all processes, which must all call.

        A figure that cannot be had is left out of the first, and None in the second.
        """
        sums = accelerator.reduce(self._sums.to(accelerator.device), reduction="sum").cpu()
        whole = _figures(sums.sum(dim=1, keepdim=True))
        figures = {name: column[0] for name, column in whole.items()}
        return {name: value for name, value in figures.items() if value is not None}, _figures(sums)


def _figures(sums: Tensor) -> dict[str, list[float | None]]:
    count, value, returns, squares, errors, loss = sums
    some = count.clamp(min=1)
    variance = squares / some - (returns / some).square()
    # Less than rounding leaves of equal returns.
    varies = variance > 1e-12 * (squares / some).clamp(min=1e-12)
    # The mean error counts as unexplained, so a critic that is off by a constant does not pass for a good one.
    explained = 1 - errors / some / torch.where(varies, variance, torch.ones_like(variance))
    here = count > 0
    return {
        "critic_explained_variance": _known(explained, here & varies),
        "critic_value_loss": _known(loss / some, here),
        "critic_value_mean": _known(value / some, here),
        "critic_return_mean": _known(returns / some, here),
    }


def _known(values: Tensor, known: Tensor) -> list[float | None]:
    return [value if there else None for value, there in zip(values.tolist(), known.tolist(), strict=True)]
