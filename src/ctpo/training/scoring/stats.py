"""The objective's statistics: of one micro-batch from its parts, and of many micro-batches as one figure each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.objectives import Objective
from ctpo.objectives.numerics import prefix_dtype
from ctpo.objectives.penalties import kl_penalty
from ctpo.training.scoring.microbatch import MicroBatch, Scored

_COUNTS: Final = (
    *("tokens", "sequences", "nonfinite", "saturated", "neutralised", "positive_logps"),
    "correction_neutralised",
)
_UNWEIGHTED: Final = ("minibatch_loss", "aux_loss", "scored_rows")
"""Figures of a micro-batch as a whole, so that all micro-batches count alike."""
WEIGHT: Final = "scored_tokens"
"""The number of tokens that a micro-batch's averages are of. It weights the averages and is no figure itself."""
CORRECTION: Final = "correction_"
"""What the names of the rollout correction's statistics begin with. They are of whole rollout batches."""
_WEIGHTS: Final = {False: WEIGHT, True: f"{CORRECTION}tokens"}
"""The name of the number of tokens that weights a figure, by whether it is one of the rollout correction."""
_NEARLY_NOTHING: Final = 1e-6


def stats_of_parts(
    parts: Sequence[Scored], batch: MicroBatch, objective: Objective, *, with_kl: bool
) -> dict[str, Tensor]:
    """The statistics of a micro-batch, 0-d tensors, as if its scored rows had been one call of the objective.

    `tokens` and `sequences` count all rows, also those that were left out.

    Args:
        parts: at least one.
        batch: the whole micro-batch.
        objective: what the parts were scored with.
        with_kl: whether the loss holds a KL penalty, so that its mean is a statistic.
    """
    if len(parts) == 1:
        stats = dict(parts[0].stats)
    else:
        logps, anchor_logps, entropies = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("logps", "anchor_logps", "entropies")
        )
        with torch.no_grad():
            mask = torch.cat([part.batch.response_mask for part in parts])
            advantages = torch.cat([part.advantages for part in parts])
            output = objective(
                logps,
                anchor_logps,
                advantages,
                mask,
                weights=_joined(part.batch.rollout_weights for part in parts),
                rejection_mask=_joined(part.batch.rejection_mask for part in parts),
                turn_ids=_joined(part.batch.turn_ids for part in parts) if objective.needs_turns else None,
            )
            stats = dict(output.stats)
            stats["entropy"] = masked_mean(entropies, mask)
            if with_kl:
                reference_logps = _joined(part.batch.reference_logps for part in parts)
                assert reference_logps is not None
                stats["kl"] = masked_mean(kl_penalty(logps, reference_logps), mask)
    scored = sum(len(part.batch) for part in parts)
    stats["tokens"] = batch.response_mask.sum().to(stats["tokens"])
    stats["sequences"] = batch.response_mask.any(dim=1).sum().to(stats["sequences"])
    stats["scored_rows"] = torch.full_like(stats["tokens"], scored / len(batch))
    stats[WEIGHT] = _weight(parts, some_left_out=scored < len(batch)).to(stats["tokens"])
    return stats


def _joined(tensors: Iterable[Tensor | None]) -> Tensor | None:
    """The rows of all tensors; None if there are none."""
    rows = [each for each in tensors if each is not None]
    return torch.cat(rows) if rows else None


def _weight(parts: Sequence[Scored], *, some_left_out: bool) -> Tensor:
    """How many tokens were scored, or nearly nothing if one row was scored only because every process needs a pass.

    The averages of such a row count if there are no others. Beside others they count as if the row had been left out.
    """
    tokens = torch.stack([part.batch.response_mask.sum() for part in parts]).sum().double()
    idle = torch.stack([~part.batch.has_advantage.any() for part in parts]).all()
    return torch.where(idle, _NEARLY_NOTHING, tokens) if some_left_out else tokens


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens under the mask, both [B, T], without gradient; 0 if there are none."""
    mean: Tensor = torch.where(mask, values.detach(), 0.0).sum() / mask.sum().clamp(min=1)
    return mean


class StatsAccumulator:
    """Collects the statistics of micro-batches as device tensors, and reads them once, so that no update waits."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, stats: dict[str, Tensor]) -> None:
        """Take the statistics of one micro-batch, 0-d tensors."""
        for name, value in stats.items():
            self._values[name].append(value.detach())

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What has been collected since the last `flush`, for a checkpoint."""
        return dict(self._values)

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Continue from what `state_dict` returned."""
        self._values = defaultdict(list, state)

    def flush(self, accelerator: Any) -> dict[str, float]:
        """Each statistic over the micro-batches since the last call and over all processes, which must all call it.

        They are put together as `together` says.
        """
        shares = self.take()
        if not shares:
            return {}
        everyone = accelerator.gather(torch.stack(list(shares.values()))[None])
        return {name: _together(name, everyone[:, i]) for i, name in enumerate(shares)}

    def take(self) -> dict[str, Tensor]:
        """This process's share of each statistic since the last call, sorted by name: [figure, weight].

        Counts are added up. Of maxima and minima the maximum and minimum is taken. All others are averaged, weighted by
        the tokens they are of, so that several processes give what one would. An average leaves out values that are not
        finite, as a skipped update has.
        """
        shares = {name: self._share(name) for name in sorted(set(self._values) - set(_WEIGHTS.values()))}
        self._values.clear()
        return shares

    def _share(self, name: str) -> Tensor:
        """[figure, weight] of this process."""
        values = torch.stack([value.to(prefix_dtype(value.device)) for value in self._values[name]])
        tokens = self._values.get(_WEIGHTS[name.startswith(CORRECTION)])
        if tokens is None or name in _UNWEIGHTED or len(tokens) != len(values):
            weights = torch.ones_like(values)
        else:
            weights = torch.stack(tokens).to(values)
        if name in _COUNTS or name.endswith(("_max", "_min")):
            return torch.stack([_combine(name, values), weights.sum()])
        weights = torch.where(values.isfinite(), weights, 0.0)
        return torch.stack([(torch.where(values.isfinite(), values, 0.0) * weights).sum(), weights.sum()])


def together(shares: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Each statistic over all processes: counts added up, the extremes, and means over tokens.

    Args:
        shares: what `StatsAccumulator.take` returned in each process.
    """
    names = shares[0] if shares else ()
    return {name: _together(name, torch.stack([each[name] for each in shares])) for name in names}


def _together(name: str, shares: Tensor) -> float:
    if name in _COUNTS or name.endswith(("_max", "_min")):
        return float(_combine(name, shares[:, 0]))
    return float(shares[:, 0].sum() / shares[:, 1].sum())


def _combine(name: str, values: Tensor) -> Tensor:
    if name in _COUNTS:
        return values.sum()
    return values.max() if name.endswith("_max") else values.min()
