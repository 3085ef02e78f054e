"""What verl measures, as the records of our own runs. Nothing here imports verl or Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctpo.runs.directory import RunDirectory

_STATS: Final = "actor/ctpo/"
_NAMES: Final = {
    "critic/score/mean": "reward",
    "actor/grad_norm": "grad_norm",
    "actor/lr": "learning_rate",
    "actor/kl_loss": "kl_reference",
    "actor/entropy": "entropy",
    "response_length/mean": "response_tokens",
    "response_length/min": "response_tokens_min",
    "response_length/max": "response_tokens_max",
    "training/num_turns/mean": "turns",
    "training/rollout_probs_diff_max": "rollout_probability_difference",
    "training/off_policy/trajectory_staleness/mean": "staleness",
    "training/off_policy/trajectory_staleness_worst/max": "staleness_max",
    "timing_s/step": "batch_s",
    "timing_s/gen": "generation_s",
    "timing_s/update_weights": "shipping_s",
}
"""Names of verl's metrics, each with the name in a record. All of the objective's statistics are recorded as well."""
_TRAINING: Final = ("old_log_prob", "ref", "values", "adv", "update_critic", "update_actor")
"""The parts of a step, in verl's words, that train."""


class VerlRecords:
    """Writes one line of `metrics.jsonl` per rollout batch of verl, and one before the first.

    Args:
        run: the directory.
        updates: per rollout batch.
        seconds: that the run took before, if it is resumed.
    """

    def __init__(self, run: RunDirectory, updates: int, seconds: float = 0.0) -> None:
        self._run, self._updates = run, updates
        self._started = time.perf_counter() - seconds
        self._heldout: dict[str, float] = {}

    def evaluated(self, batch: int, metrics: Mapping[str, Any], problems: int) -> None:
        """Take the figures of an evaluation. That before the first update is a record of its own.

        Args:
            batch: how many rollout batches have been trained on.
            metrics: as verl's `_validate` returns them.
            problems: how many were evaluated.
        """
        scores = [float(value) for name, value in metrics.items() if name.endswith("/acc/mean@1")]
        if not scores:
            return
        accuracy = sum(scores) / len(scores)
        error = math.sqrt(max(accuracy * (1 - accuracy), 0.0) / max(problems - 1, 1))
        self._heldout = {
            "heldout_pass@1": accuracy,
            "heldout_pass@1_stderr": error,
            "heldout_problems": problems,
        }
        if batch == 0:
            self._write({"batch": 0, "step": 0})

    def trained(self, batch: int, metrics: Mapping[str, Any], responses: Sequence[Mapping[str, Any]]) -> None:
        """Write the record of a rollout batch.

        Args:
            batch: its number, from 1.
            metrics: as verl logs them.
            responses: `reward_extra_info` of each response.
        """
        record: dict[str, Any] = {"batch": batch, "step": batch * self._updates}
        record |= {ours: _plain(metrics[theirs]) for theirs, ours in _NAMES.items() if theirs in metrics}
        record |= {
            name.removeprefix(_STATS): _plain(value)
            for name, value in metrics.items()
            if name.startswith(_STATS)
        }
        record["training_s"] = sum(_plain(metrics.get(f"timing_s/{part}", 0.0)) for part in _TRAINING)
        if responses:
            calls = sum(each.get("calls", 0) for each in responses)
            record |= {
                "tool_calls": calls,
                "tool_calls_per_response": calls / len(responses),
                "tool_failures": sum(each.get("failures", 0) for each in responses),
                "truncated": _mean(responses, "truncated"),
                "masked": _mean(responses, "masked"),
                "correct": _mean(responses, "acc"),
            }
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        seconds = round(time.perf_counter() - self._started, 3)
        self._run.append({**record, **self._heldout, "seconds": seconds})
        self._heldout = {}


def _mean(responses: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(each.get(name, 0.0)) for each in responses) / len(responses)


def _plain(value: Any) -> float:
    """A number of Python's from one of numpy or torch."""
    return float(value)
