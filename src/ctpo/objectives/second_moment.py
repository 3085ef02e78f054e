"""A trust region by the second moment of the minibatch: as wide as a budget for the drift of all tokens allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.quantile_gate import Smoothing, gather_values
from ctpo.objectives.tokens import Tokens
from ctpo.objectives.trust_regions import Limits, RatioBand


def capped_at(values: Tensor, included: Tensor, mean: float) -> Tensor:
    """The largest cap whose included values, each cut to the cap, have at most this mean; +inf if no cap is needed.

    It reads nothing from the device.

    Args:
        values: at least 0, any shape.
        included: mask of the values that count.
        mean: the largest mean allowed.

    Example:
        capped_at(torch.tensor([1.0, 2.0, 9.0]), torch.ones(3, dtype=torch.bool), mean=2.0)  # 3.0
    """
    wide = prefix_dtype(values.device)
    inf = torch.full((1,), torch.inf, dtype=wide, device=values.device)
    ranked = torch.cat([torch.where(included, values.to(wide), inf).reshape(-1), inf]).sort().values
    count = included.sum().to(wide)
    index = torch.arange(ranked.shape[0], device=values.device)
    inside = index < count
    ranked = torch.where(inside, ranked, torch.zeros_like(ranked))
    before, above = ranked.cumsum(0) - ranked, (count - index).clamp(min=1)
    # The sum if everything from here on is cut to the value here. It never falls along the ranks.
    cut = before + ranked * above
    first = (inside & (cut <= mean * count)).sum().unsqueeze(0)
    cap = (mean * count - before[first]) / above[first]
    return torch.where(first < count, cap, inf).squeeze(0)


@dataclass(frozen=True)
class SecondMomentBand:
    """[−τ, τ] on the log ratio, with the largest τ for which the mean of min(d², τ²) is at most `moment`.

    The mean is over the tokens of the minibatch that have moved the way of their advantage: A > 0 and d > 0, or A < 0
    and d < 0. The band is never narrower than [1 − ratio_low, 1 + ratio_high]. "Prosperity before Collapse: How Far Can
    Off-Policy RL Reach with Stale Data on LLMs?" (M2PO), arXiv 2510.01161.

    Attributes:
        moment: the budget, nats².
        ratio_low, ratio_high: distances from 1 of the narrowest band.
        across_ranks: pool the values over `group`, with one host read per call.
        group: the data-parallel process group of `across_ranks`; None is the default group.
        smoothing: an average of τ over calls, for minibatches that are split. A call that needs no cap leaves it alone.

    Raises:
        ValueError: a number out of range.

    Example:
        Objective(ratio=TokenRatio(), trust_region=SecondMomentBand(moment=0.04), surrogate=MinClip())
    """

    batch_wide: ClassVar[bool] = True

    moment: float = 0.04
    ratio_low: float = 0.3
    ratio_high: float = 0.5
    across_ranks: bool = False
    group: dist.ProcessGroup | None = None
    smoothing: Smoothing | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        checks.finite("moment", self.moment, 0.0)
        checks.flag("across_ranks", self.across_ranks)
        RatioBand(self.ratio_low, self.ratio_high)

    @torch.no_grad()
    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        up, down = (advantages > 0) & (log_weight > 0), (advantages < 0) & (log_weight < 0)
        moving = tokens.kept & (up | down)
        values = torch.where(moving, log_weight.square(), torch.inf).reshape(-1)
        values = tokens.layout.gather_shards(values)
        if self.across_ranks:
            values = gather_values(values, self.group, torch.inf)
        tau = capped_at(values, values.isfinite(), self.moment).sqrt()
        if self.smoothing is not None:
            tau = self.smoothing.update(tau)
        narrowest = RatioBand(self.ratio_low, self.ratio_high).bases
        tau = tau.to(log_weight.dtype)
        return Limits(-tau.clamp(min=-narrowest.lower), tau.clamp(min=narrowest.upper))
