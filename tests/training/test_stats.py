"""The statistics of several micro-batches are those of one call over all of them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from ctpo.objectives import preset
from ctpo.training.scoring.stats import StatsAccumulator


class OneProcess:
    def gather(self, values: Tensor) -> Tensor:
        return values


def statistics(rows: int) -> dict[str, Tensor]:
    """Of a micro-batch, or of several equal ones: with clipped, saturated and impossible tokens."""
    draw = torch.Generator().manual_seed(0)
    logps = -torch.rand(4, 6, generator=draw)
    old_logps = logps + 0.3 * torch.randn(4, 6, generator=draw)
    logps[0, 0], logps[1, 1], old_logps[2, 2] = float("nan"), 0.5, -40.0
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    mask = torch.ones(4, 6, dtype=torch.bool)
    batch = [torch.cat([each] * rows) for each in (logps, old_logps, advantages, mask)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the log-prob above 0
        stats: dict[str, Tensor] = preset("ctpo")(*batch).stats
    return stats


def test_equal_micro_batches_are_like_one_that_holds_them_all() -> None:
    """Counts add up, and everything else stays. So a new count of an objective fails here until it is known as one."""
    accumulator = StatsAccumulator()
    for _ in range(3):
        accumulator.add(statistics(1))
    actual = accumulator.flush(OneProcess())
    expected = {name: float(value) for name, value in statistics(3).items()}
    assert min(expected[name] for name in ("nonfinite", "saturated", "positive_logps")) > 0
    assert actual == pytest.approx(expected, rel=1e-5)
