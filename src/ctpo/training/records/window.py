"""The figures of one record, gathered apart from those of the trainer's log.

A script may log at any step, and a record is of a whole rollout batch. So what is measured goes to two readers: the log
clears its own figures each time it logs, and the window keeps what the next record needs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from ctpo.training.config.groups import BUCKETS
from ctpo.training.sampling.reward import OVERLONG
from ctpo.training.scoring.stats import StatsAccumulator

_TRL_NAMES: Final = {
    "completions/mean_length": "response_tokens",
    "completions/min_length": "response_tokens_min",
    "completions/max_length": "response_tokens_max",
    "completions/clipped_ratio": "truncated",
    "frac_reward_zero_std": "zero_variance_groups",
    f"rewards/{OVERLONG}/mean": "overlong_penalty",
    "tools/call_frequency": "tool_calls_per_response",
    "groups/rounds": "sampling_rounds",
    "groups/without_spread": "groups_without_spread",
    "groups/extra_responses": "extra_responses",
    "groups/reward": "reward_sampled",
    **{f"curriculum/{name}": f"curriculum_{name}" for name in BUCKETS},
    **{f"curriculum/problems_{name}": f"problems_{name}" for name in BUCKETS},
}
"""Figures that TRL and the choice of groups gather, each with its name in a record. Others with a slash are not
recorded."""
_NOT_RECORDED: Final = ("num_tokens", "step_time", "num_input_tokens_seen", "total_flos")


class Window:
    """What a trainer has measured since its last record, in this process. Nothing is kept while it is closed."""

    def __init__(self) -> None:
        self.open = False
        """Whether somebody writes records."""
        self._stats = StatsAccumulator()
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._seen: dict[str, int] = {}
        self._skipped = 0
        self._update: dict[str, Any] = {}

    def add(self, stats: dict[str, Tensor]) -> None:
        """Take the statistics of one micro-batch, or those of a rollout correction."""
        if self.open:
            self._stats.add(stats)

    def updated(self, grad_norm: Any, learning_rate: float) -> None:
        """Take the gradient norm before clipping and the learning rate of an update."""
        self._update = {"grad_norm": grad_norm, "learning_rate": learning_rate}

    def take(self, metrics: Mapping[str, Sequence[float]], *, cleared: bool = False) -> None:
        """Take what TRL has gathered since the last call.

        Args:
            metrics: TRL's lists by name, which grow until it logs.
            cleared: whether TRL clears them after this call.
        """
        for name, values in metrics.items() if self.open else ():
            self._metrics[name] += values[self._seen.get(name, 0) :]
            self._seen[name] = len(values)
        if cleared:
            self._seen.clear()

    def close(
        self, metrics: Mapping[str, Sequence[float]], skipped: int, accelerator: Any
    ) -> dict[str, float | None]:
        """The figures since the last call, under the names that records use. Every process must call.

        Args:
            metrics: as `take` gets them.
            skipped: updates that were skipped in the whole run.
            accelerator: gathers over processes.
        """
        self.take(metrics)
        means = {_TRL_NAMES.get(name, name): _mean(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        stats = self._stats.flush(accelerator)
        if "minibatch_loss" in stats:  # transformers' own average leaves out what came before an interrupt
            stats["loss"] = stats.pop("minibatch_loss")
        norm = self._update.get("grad_norm")
        update = {**self._update, "grad_norm": norm.item() if isinstance(norm, Tensor) else norm}
        new, self._skipped = skipped - self._skipped, skipped
        return {
            **{name: value for name, value in means.items() if "/" not in name and name not in _NOT_RECORDED},
            **update,
            **stats,
            "skipped_updates": new,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "stats": self._stats.state_dict(),
            "metrics": dict(self._metrics),
            "seen": dict(self._seen),
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._stats.load_state_dict(state["stats"])
        self._metrics = defaultdict(list, state["metrics"])
        self._seen, self._skipped = dict(state["seen"]), state["skipped"]


def _mean(values: Sequence[float]) -> float | None:
    """The mean as TRL logs it: of the values that are no NaN, and None if all are."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None
