"""The ratios and statistics that one training process of verl sees. Nothing here imports verl or Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ctpo.objectives import Details, Objective, turns_of
from ctpo.training.diagnostics.profile import OwnSums, PositionProfile
from ctpo.training.diagnostics.samples import sample_rows
from ctpo.training.scoring.microbatch import MicroBatch, Scored
from ctpo.training.scoring.stats import WEIGHT, StatsAccumulator


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a process has seen since it was last asked."""

    sums: OwnSums | None
    """By position; None if it has trained on nothing."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """Responses of its last micro-batch, token by token."""
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    """Its share of the objective's statistics (`StatsAccumulator.take`)."""


class Ratios:
    """Collects the ratios and statistics of one process.

    Args:
        objective: that the process trains with.
        longest: a number of tokens that no response exceeds.
        tokenizer: of the model.
    """

    def __init__(self, objective: Objective, longest: int, tokenizer: Any) -> None:
        self._objective, self._tokenizer = objective, tokenizer
        self._profile, self._longest = PositionProfile(lambda: objective, longest), longest
        self._stats = StatsAccumulator()
        self._updates = 0
        self._last: Scored | None = None

    def start_update(self) -> None:
        """Count what comes next to a further update."""
        self._updates += 1

    def add(self, logps: Tensor, columns: Mapping[str, Tensor], stats: Mapping[str, float]) -> None:
        """Add the responses of one forward pass. This does not wait for the device.

        An objective that depends on the whole batch is asked again here, after its call. A quantile gate has moved
        by then, so its profile is of one call later.

        Args:
            logps: [B, T] of the model, nats.
            columns: verl's names of tensors, [B, T] and padded: `prompts`, `responses`, `response_mask`,
                `old_log_probs`, `advantages`, the masks `prompt_mask` and `completion_mask`, and if there are any
                `rm_scores` and `rollout_is_weights`.
            stats: of the objective's call, by name.
        """
        weighted = {**stats, WEIGHT: stats["tokens"]}
        self._stats.add({name: torch.tensor(value, dtype=torch.float64) for name, value in weighted.items()})
        batch = _micro_batch(columns)
        anchor, signal, mask = (
            columns["old_log_probs"],
            batch.weighted(batch.advantages),
            batch.response_mask,
        )
        details: Details | None = None
        if not self._objective.row_wise:
            details = self._objective.examine(logps, anchor, signal, mask, turns_of(mask))
        wide = None if details is None else Details(**{k: self._padded(v) for k, v in vars(details).items()})
        self._profile.add(
            self._padded(logps),
            self._padded(anchor),
            self._padded(signal),
            self._padded(mask),
            wide,
            update=self._updates - 1,
        )
        nothing = logps.new_zeros(())
        self._last = Scored(
            batch=batch,
            loss=nothing,
            policy_loss=nothing,
            advantages=batch.advantages,
            logps=logps,
            anchor_logps=anchor,
            entropies=nothing,
            stats={},
            details=details,
        )

    def _padded(self, values: Tensor) -> Tensor:
        """The values up to the length of the longest response. verl pads each micro-batch to a length of its own."""
        return torch.nn.functional.pad(values, (0, self._longest - values.shape[1]))

    def take(self, samples: int) -> Taken:
        """What was added since the last call. The numbers of updates begin at 0 again.

        Args:
            samples: the largest number of responses to return token by token.
        """
        rows = []
        if samples and self._last is not None:
            rows = sample_rows([self._last], self._objective, self._tokenizer, samples)
        self._updates, self._last = 0, None
        return Taken(sums=self._profile.take(), samples=rows, stats=self._stats.take())


def _micro_batch(columns: Mapping[str, Tensor]) -> MicroBatch:
    mask = columns["response_mask"].bool()
    scores = columns.get("rm_scores")
    return MicroBatch(
        prompt_ids=columns["prompts"],
        prompt_mask=columns["prompt_mask"],
        completion_ids=columns["responses"],
        completion_mask=columns["completion_mask"],
        response_mask=mask,
        advantages=columns["advantages"],
        num_tokens=mask.sum(),
        num_sequences=mask.any(dim=1).sum(),
        rollout_weights=columns.get("rollout_is_weights"),
        rewards=None if scores is None else scores.sum(dim=-1),
    )
