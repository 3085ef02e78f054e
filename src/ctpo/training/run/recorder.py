"""Writes a run's records while TRL trains, and evaluates on held-out problems when that is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ctpo.evaluation import Evaluation
from ctpo.runs.checkpoints import Clocks, write_clocks
from ctpo.runs.directory import RunDirectory
from ctpo.training.diagnostics.watch import Diagnostics
from ctpo.training.run.events import Listener
from ctpo.training.sampling.account import RolloutAccount, rollout_figures
from ctpo.training.sampling.reward import OVERLONG
from ctpo.training.scoring.stats import LOGGER_NAMES

_RENAMED: Final = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_variance_groups",
    "completions/mean_length": "response_tokens",
    "completions/clipped_ratio": "truncated",
    "minibatch_loss": "loss",  # transformers' own average leaves out what came before an interrupt
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
    "completions/max_length": "response_tokens_max",
    "completions/min_length": "response_tokens_min",
    f"rewards/{OVERLONG}/mean": "overlong_penalty",
    **{theirs: ours for ours, theirs in LOGGER_NAMES.items()},
}
"""Names that TRL and transformers log under, each with its name in a record. The objective's statistics keep theirs."""
_NOT_RECORDED: Final = ("loss", "num_tokens", "step_time", "num_input_tokens_seen", "total_flos")


class RunClock:
    """Measures how long a run takes, including the parts before an interrupt.

    Args:
        started: the reading of `time.perf_counter` from which the time counts.
        before: of the checkpoint that the run continues from.
    """

    def __init__(self, started: float, before: Clocks) -> None:
        self._started, self._before = started, before
        self._batch_started, self._batch_before = started, before.batch_seconds

    @property
    def seconds(self) -> float:
        """Seconds since the run started: imports, evaluations and interrupted parts included."""
        return self._before.seconds + time.perf_counter() - self._started

    @property
    def batch_seconds(self) -> float:
        """Seconds since the current rollout batch started."""
        return self._batch_before + time.perf_counter() - self._batch_started

    def start_training(self) -> None:
        """Start the time of the first rollout batch, or continue that of an interrupted one."""
        self._batch_started = time.perf_counter()

    def start_batch(self) -> None:
        """Start the time of the next rollout batch."""
        self._batch_before, self._batch_started = 0.0, time.perf_counter()


class RunRecorder(TrainerCallback):  # type: ignore[misc]
    """Writes one line of metrics per rollout batch, with a held-out evaluation where one is due.

    With each evaluation it writes samples of the last update, token by token. Every process takes part in gathering
    and evaluating; the main process writes. `logging_steps` must be the number of optimizer steps per rollout batch.

    Args:
        run: the directory that is written to.
        clock: measures the time of the run.
        account: returns what the current rollout batch cost, over all processes.
        evaluate: evaluates on the held-out problems after this many rollout batches.
        listener: gets each record.
        log: hands figures to the loggers that `report_to` names.
        diagnostics: of the trainer.
        updates_per_batch: optimizer steps per rollout batch.
        eval_every: rollout batches between held-out evaluations; 0 evaluates after the last one only.
        samples: responses to write token by token with each evaluation.
        last_batch: the number of rollout batches of the whole run.
    """

    def __init__(
        self,
        run: RunDirectory,
        clock: RunClock,
        account: Callable[[], RolloutAccount],
        evaluate: Callable[[int], Evaluation],
        listener: Listener,
        *,
        log: Callable[[dict[str, float]], None],
        diagnostics: Diagnostics,
        updates_per_batch: int,
        eval_every: int,
        samples: int,
        last_batch: int,
    ) -> None:
        self._run, self._clock, self._account = run, clock, account
        self._evaluate, self._listener, self._log = evaluate, listener, log
        self._updates, self._eval_every, self._last = updates_per_batch, eval_every, last_batch
        self._diagnostics, self._samples = diagnostics, samples

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._clock.start_training()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        batch, updates = divmod(state.global_step - 1, self._updates)
        self._listener.progressed(batch + 1, updates + 1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        at_boundary = state.global_step > 0 and state.global_step % self._updates == 0
        # transformers also logs at the end of a run, and we log evaluations; neither has a learning rate.
        if logs is None or "learning_rate" not in logs or not at_boundary:
            return
        batch = state.global_step // self._updates
        record = {"batch": batch, "step": state.global_step, **_metrics(logs), **self._costs()}
        if batch == self._last or (self._eval_every and batch % self._eval_every == 0):
            evaluation = self._evaluate(batch)
            record |= heldout_metrics(evaluation)
            summary = evaluation.summary().items()
            self._log({f"eval_{name.replace('@', '_at_')}": value for name, value in summary})
            rows = self._diagnostics.samples(self._samples) if state.is_world_process_zero else []
            if rows:
                self._run.write_samples(batch, rows)
        record["seconds"] = round(self._clock.seconds, 3)
        if state.is_world_process_zero:
            self._run.append(record, self._diagnostics.line)
            self._listener.recorded(record)
        self._clock.start_batch()

    def write_clocks(self, folder: Path) -> None:
        """Write the clocks into a checkpoint that is being written."""
        write_clocks(folder, Clocks(seconds=self._clock.seconds, batch_seconds=self._clock.batch_seconds))

    def _costs(self) -> dict[str, Any]:
        """What the rollout batch cost, in seconds, tokens per second and tool calls."""
        account, wall = self._account(), self._clock.batch_seconds
        return {
            "batch_s": round(wall, 3),
            "generation_s": round(account.seconds - account.tool_seconds, 3),
            "tool_s": round(account.tool_seconds, 3),
            "training_s": round(wall - account.seconds, 3),
            "tokens_per_s": round(account.model_tokens / wall, 1),
            "tool_calls": account.tool_calls,
            "tool_calls_per_response": account.tool_calls / max(account.responses, 1),
            "tool_failures": account.tool_failures,
            "tool_executed": account.tool_executed,
            **rollout_figures(account),
        }


def heldout_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The figures of an evaluation under the names that records and summaries use."""
    return {f"heldout_{name}": value for name, value in evaluation.summary().items()}


def _metrics(logs: dict[str, Any]) -> dict[str, Any]:
    """What a record keeps of the figures that were logged."""
    metrics: dict[str, Any] = {}
    for name, value in logs.items():
        if name in _RENAMED:
            metrics[_RENAMED[name]] = value
        elif "/" not in name and name not in _NOT_RECORDED:
            metrics[name] = value
    return metrics
