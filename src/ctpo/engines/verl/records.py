"""What verl measures, as the records of our own runs. Nothing here imports verl or Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctpo.engines.verl.ratios import Taken
from ctpo.evaluation.heldout import Evaluation, gain, heldout_metrics
from ctpo.evaluation.judged import JudgedResponse
from ctpo.objectives import Objective
from ctpo.runs.directory import RunDirectory
from ctpo.training.diagnostics.profile import added, position_edges
from ctpo.training.diagnostics.record import profile_figures, profile_line
from ctpo.training.scoring.stats import together

_NAMES: Final = {
    "critic/score/mean": "reward",
    "actor/grad_norm": "gradient_norm_mean",
    "actor/lr": "learning_rate",
    "actor/kl_loss": "kl_reference",
    "actor/entropy": "entropy",
    "critic/vf_explained_var": "critic_explained_variance",
    "critic/vf_loss": "critic_value_loss",
    "critic/values/mean": "critic_value_mean",
    "critic/grad_norm": "critic_grad_norm",
    "training/num_turns/mean": "turns",
    "training/rollout_probs_diff_max": "rollout_probability_difference",
    "training/off_policy/trajectory_staleness/mean": "staleness",
    "training/off_policy/trajectory_staleness_worst/max": "staleness_max",
    "timing_s/step": "batch_s",
    "timing_s/gen": "generation_s",
    "timing_s/update_weights": "shipping_s",
}
"""Names of verl's metrics, each with the name in a record. The objective's statistics are recorded as well."""
_COUNTED: Final = ("tokens", "sequences")
"""Statistics that a record does not have, since it counts the responses themselves."""
_TRAINING: Final = ("old_log_prob", "ref", "values", "adv", "update_critic", "update_actor")
"""The parts of a step, in verl's words, that train."""


class VerlRecords:
    """Writes one line of `metrics.jsonl` per rollout batch of verl, and one before the first.

    Args:
        run: the directory.
        updates: per rollout batch.
        objective: that is trained with; None for a loss of verl's own, whose ratios are not known.
        longest: a number of tokens that no response exceeds.
        seconds: that the run took so far.
        transcripts: how many responses to write after each evaluation, held-out ones and training samples.
        every: the number of rollout batches from one evaluation to the next.
        length: of the run in rollout batches.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        updates: int,
        objective: Objective | None,
        longest: int,
        seconds: float = 0.0,
        transcripts: int = 0,
        every: int = 1,
        length: int = 0,
    ) -> None:
        self._run, self._updates, self._objective = run, updates, objective
        self._edges = position_edges(longest)
        self._started = time.perf_counter() - seconds
        self._transcripts, self._every, self._length = transcripts, every, length
        self._heldout: dict[str, float] = {}

    def samples(self, batch: int) -> int:
        """How many training responses to write token by token after this rollout batch."""
        due = batch == self._length or batch % self._every == 0
        return self._transcripts if due else 0

    def evaluated(self, batch: int, written: Sequence[Mapping[str, Any]]) -> None:
        """Take an evaluation. That before the first update is a record of its own.

        Args:
            batch: how many rollout batches have been trained on.
            written: the held-out responses (`JudgedResponse.record`), in the order of the problems.
        """
        if not written:
            return
        evaluation = Evaluation(responses=[JudgedResponse.from_record(row) for row in written])
        self._run.write_transcripts(batch, evaluation.transcripts(self._transcripts))
        self._heldout = heldout_metrics(evaluation)
        if batch == 0:
            self._write({"batch": 0, "step": 0})
        elif batch == self._length:
            self._heldout |= gain(evaluation, self._run.records()[0])

    def trained(
        self,
        batch: int,
        metrics: Mapping[str, Any],
        responses: Sequence[Mapping[str, Any]],
        taken: Sequence[Taken] = (),
    ) -> None:
        """Write the record of a rollout batch, and what its processes saw of ratios.

        Args:
            batch: its number, from 1.
            metrics: as verl logs them.
            responses: `reward_extra_info` of each response.
            taken: the ratios and statistics of each training process.
        """
        record: dict[str, Any] = {"batch": batch, "step": batch * self._updates}
        record |= {ours: _plain(metrics[theirs]) for theirs, ours in _NAMES.items() if theirs in metrics}
        stats = together([each.stats for each in taken if each.stats])
        record |= {name: value for name, value in stats.items() if name not in _COUNTED}
        record["training_s"] = sum(_plain(metrics.get(f"timing_s/{part}", 0.0)) for part in _TRAINING)
        if responses:
            record |= _of_responses(responses)
            record["tokens_per_s"] = record["tokens"] / record["batch_s"] if record.get("batch_s") else 0.0
        line = None
        sums = added([each.sums for each in taken if each.sums is not None], self._edges)
        if sums is not None and self._objective is not None:
            line = profile_line(sums, self._objective)
            first = (batch - 1) * self._updates
            line["updates"]["update"] = [first + number for number in line["updates"]["update"]]
            record |= profile_figures(sums)
        samples = [row for each in taken for row in each.samples][: self._transcripts]
        if samples:
            self._run.write_samples(batch, samples)
        self._write(record, line)

    def _write(self, record: dict[str, Any], line: dict[str, Any] | None = None) -> None:
        seconds = round(time.perf_counter() - self._started, 3)
        self._run.append({**record, **self._heldout, "seconds": seconds}, line)
        self._heldout = {}


def _of_responses(responses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    calls = sum(each.get("calls", 0) for each in responses)
    lengths = [each.get("tokens", 0) for each in responses]
    return {
        "tokens": sum(lengths),
        "response_tokens": sum(lengths) / len(lengths),
        "response_tokens_min": min(lengths),
        "response_tokens_max": max(lengths),
        "tool_calls": calls,
        "tool_calls_per_response": calls / len(responses),
        "tool_failures": sum(each.get("failures", 0) for each in responses),
        "truncated": _mean(responses, "truncated"),
        "masked": _mean(responses, "masked"),
        "correct": _mean(responses, "acc"),
    }


def _mean(responses: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(float(each.get(name, 0.0)) for each in responses) / len(responses)


def _plain(value: Any) -> float:
    """A number of Python's from one of numpy or torch."""
    return float(value)
