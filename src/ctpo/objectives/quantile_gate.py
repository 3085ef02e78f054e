"""A trust region by a quantile of the minibatch instead of an absolute band. Experimental.

A narrow absolute band starves learning once the policy has moved. A quantile removes the outliers of the minibatch at
hand, however far it has moved as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from ctpo.objectives import checks
from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.tokens import Tokens
from ctpo.objectives.trust_regions import Limits, Statistic

_ROUNDING = 1e-9  # (1 − q)·n of a round share may land just above the integer it stands for


def upper_quantile(values: Tensor, included: Tensor, q: float) -> Tensor:
    """The smallest included value τ such that at least a share 1 − q of them is at or below it; +inf if there is none.

    It works for any number of values, interpolates nothing, and reads nothing from the device.

    Example:
        upper_quantile(torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.ones(4, dtype=torch.bool), q=0.25)  # 3.0
    """
    inf = torch.full((1,), torch.inf, dtype=values.dtype, device=values.device)
    ranked = torch.cat([torch.where(included, values, inf).reshape(-1), inf]).sort().values
    count = included.sum()
    rank = ((1 - q) * count.to(prefix_dtype(values.device)) - _ROUNDING).ceil().long().clamp(min=1) - 1
    return ranked[rank.unsqueeze(0)].squeeze(0)


def gather_values(values: Tensor, group: dist.ProcessGroup | None, fill: float) -> Tensor:
    """The 1-D values of all ranks, padded with `fill`. Lengths may differ; the host reads the longest."""
    longest = torch.tensor([values.shape[0]], device=values.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group)
    padded = values.new_full((int(longest.item()),), fill)
    padded[: values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts)


@dataclass
class Smoothing:
    """An exponential moving average of a threshold, kept between calls. The first finite threshold starts it.

    Raises:
        ValueError: a decay outside of [0, 1).

    Example:
        smoothing = Smoothing(decay=0.9)
        smoothing.update(torch.tensor(1.0))
        smoothing.update(torch.tensor(2.0))  # 1.1
    """

    decay: float
    value: Tensor | None = None

    def __post_init__(self) -> None:
        if checks.number("ema", self.decay, 0.0) >= 1:
            raise ValueError(f"ema: {self.decay!r} must be < 1.")

    def update(self, new: Tensor) -> Tensor:
        """decay · old + (1 − decay) · new. A threshold without data (+inf) leaves the average alone."""
        old = torch.full_like(new, torch.inf) if self.value is None else self.value.to(new)
        mixed = torch.where(old.isinf(), new, self.decay * old + (1 - self.decay) * new)
        self.value = torch.where(new.isinf(), old, mixed)
        return self.value


@dataclass(frozen=True)
class QuantileGate:
    """[−τ, τ] with τ the (1 − q) quantile of |statistic| over the tokens of informative rows (A ≠ 0).

    Attributes:
        q: the share of the tokens to leave out, in [0, 1).
        statistic: what is compared; None is the ratio that weighs.
        by_position: divide the statistic by its root mean square over the rows at each position t.
        across_ranks: pool the values over `group`, with one host read per call.
        group: the data-parallel process group of `across_ranks`; None is the default group.
        smoothing: an average of τ over calls, for minibatches that are too small or split too finely to estimate it.

    Example:
        Objective(
            ratio=CumulativeRatio(), trust_region=QuantileGate(q=0.2), surrogate=Gated()
        ).row_wise  # False
    """

    batch_wide: ClassVar[bool] = True

    q: float = 0.2
    statistic: Statistic | None = None
    by_position: bool = False
    across_ranks: bool = False
    group: dist.ProcessGroup | None = None
    smoothing: Smoothing | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        checks.number("q", self.q, 0.0)
        checks.flag("across_ranks", self.across_ranks)
        if self.q >= 1:
            raise ValueError(f"q: {self.q!r} must be < 1; at 1 nothing would be left.")

    @torch.no_grad()
    def limits(self, tokens: Tokens, advantages: Tensor, log_weight: Tensor) -> Limits:
        chosen = log_weight if self.statistic is None else self.statistic.statistic(tokens)
        chosen = chosen.to(log_weight.dtype).expand_as(log_weight)
        informative = tokens.kept & (advantages != 0)
        if self.by_position:
            chosen = chosen / self._spread(chosen, informative, tokens)
        values = torch.where(informative, chosen.abs(), torch.inf).reshape(-1)
        values = tokens.layout.gather_shards(values)
        if self.across_ranks:
            values = gather_values(values, self.group, torch.inf)
        tau = upper_quantile(values, values.isfinite(), self.q)
        if self.smoothing is not None:
            tau = self.smoothing.update(tau)
        own = self.statistic is None and not self.by_position
        return Limits(-tau, tau, statistic=None if own else chosen)

    def _spread(self, values: Tensor, informative: Tensor, tokens: Tokens) -> Tensor:
        """The root mean square over the informative rows at each token's position t, and 1 where it is 0."""
        index = (tokens.positions().long() - 1).clamp(min=0).reshape(-1)
        size = tokens.layout.position_bound(values.shape[-1])
        zero = torch.zeros((), dtype=prefix_dtype(values.device), device=values.device)
        table = zero.new_zeros(2, size)
        flat = torch.where(informative, values.to(zero.dtype).square(), zero).reshape(-1)
        table = table.index_add(1, index, torch.stack([flat, informative.reshape(-1).to(zero.dtype)]))
        table = tokens.layout.sum_shards(table)
        if self.across_ranks:
            table = gather_tables(table, self.group)
        rms = (table[0] / table[1]).sqrt()
        rms = torch.where(rms > 0, rms, torch.ones_like(rms))  # NaN, where no row is, is not above 0
        return rms[index].reshape(values.shape).to(values.dtype)


def gather_tables(table: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of the ranks' [2, size] tables, cut to this rank's columns. Sizes may differ."""
    longest = torch.tensor([table.shape[1]], device=table.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group)
    padded = table.new_zeros(2, int(longest.item()))
    padded[:, : table.shape[1]] = table
    dist.all_reduce(padded, group=group)
    return padded[:, : table.shape[1]]
