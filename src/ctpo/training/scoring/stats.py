"""The objective's statistics between two log lines, as one figure each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from ctpo.objectives.numerics import prefix_dtype

_COUNTS = ("tokens", "sequences", "nonfinite", "saturated", "neutralised")
_UNWEIGHTED = ("minibatch_loss", "aux_loss", "scored_rows")
"""Of the micro-batch as a whole: its share of the loss times the number of shares, or a share of its rows."""
WEIGHT = "scored_tokens"
"""The tokens that a micro-batch's averages are of; not a figure itself."""


LOGGER_NAMES = {
    "clip_fraction": "clip_ratio/region_mean",
    "clip_fraction_high": "clip_ratio/high_mean",
    "clip_fraction_low": "clip_ratio/low_mean",
    "clip_fraction_dual": "clip_ratio/dual_mean",
    "engine_gap_mean": "sampling/sampling_logp_difference/mean",
    "engine_gap_max": "sampling/sampling_logp_difference/max",
}
"""Figures that TRL's trainers log too, under TRL's names, so that one dashboard shows both. Records keep ours."""


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
        """Each statistic over the micro-batches and processes since the last call.

        Counts are summed, minima and maxima taken as such, everything else averaged by the tokens it is of, as in
        one process; what is not finite (a skipped update) is left out of averages.
        """
        if not self._values:
            return {}
        names = sorted(set(self._values) - {WEIGHT})
        mine = torch.stack([self._share(name) for name in names])
        everyone = accelerator.gather(mine[None])
        self._values.clear()
        return {name: _together(name, everyone[:, i]) for i, name in enumerate(names)}

    def _share(self, name: str) -> Tensor:
        """This process's [figure, weight]."""
        values = torch.stack([value.to(prefix_dtype(value.device)) for value in self._values[name]])
        tokens = self._values.get(WEIGHT)
        if tokens is None or name in _UNWEIGHTED or len(tokens) != len(values):
            weights = torch.ones_like(values)
        else:
            weights = torch.stack(tokens).to(values)
        if name in _COUNTS or name.endswith(("_max", "_min")):
            return torch.stack([_combine(name, values), weights.sum()])
        weights = torch.where(values.isfinite(), weights, 0.0)
        return torch.stack([(torch.where(values.isfinite(), values, 0.0) * weights).sum(), weights.sum()])


def _together(name: str, shares: Tensor) -> float:
    if name in _COUNTS or name.endswith(("_max", "_min")):
        return float(_combine(name, shares[:, 0]))
    return float(shares[:, 0].sum() / shares[:, 1].sum())


def _combine(name: str, values: Tensor) -> Tensor:
    if name in _COUNTS:
        return values.sum()
    return values.max() if name.endswith("_max") else values.min()
