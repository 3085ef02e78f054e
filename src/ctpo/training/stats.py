"""The objective's statistics between two log lines, as one figure each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

_COUNTS = ("tokens", "sequences", "nonfinite", "saturated", "neutralised")


class StatsAccumulator:
    """Collects device tensors as they come and reads them once, so that no update waits for the device."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, stats: dict[str, Tensor]) -> None:
        """Take one micro-batch's statistics, 0-d tensors."""
        for name, value in stats.items():
            self._values[name].append(value.detach())

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What has been collected since the last `flush`."""
        return dict(self._values)

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from what `state_dict` gave."""
        self._values = defaultdict(list, state)

    def flush(self, accelerator: Any) -> dict[str, float]:
        """Each statistic over the micro-batches and processes since the last call: counts summed, minima and
        maxima as such, everything else averaged."""
        if not self._values:
            return {}
        names = sorted(self._values)
        mine = torch.stack([_combine(name, self._values[name]) for name in names])
        everyone = accelerator.gather(mine[None])
        self._values.clear()
        return {name: float(_combine(name, list(everyone[:, i]))) for i, name in enumerate(names)}


def _combine(name: str, values: list[Tensor]) -> Tensor:
    stacked = torch.stack([value.float() for value in values])
    if name in _COUNTS:
        return stacked.sum()
    if name.endswith("_max"):
        return stacked.max()
    if name.endswith("_min"):
        return stacked.min()
    return stacked.mean()
