"""What happens around TRL's optimizer steps: records, held-out evaluations, and a clean stop."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ctpo.evaluation import Evaluation
from ctpo.runs.atomic import write_json
from ctpo.runs.directory import RunDirectory
from ctpo.training.diagnostics.watch import Diagnostics
from ctpo.training.run.events import Listener
from ctpo.training.sampling.reward import OVERLONG
from ctpo.training.sampling.rollout_func import RolloutAccount, rollout_figures
from ctpo.training.scoring.stats import LOGGER_NAMES

# TRL's and transformers' names on the left, the record's on the right; objective statistics keep their own.
_RENAMED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "zero_variance_groups",
    "completions/mean_length": "response_tokens",
    "completions/clipped_ratio": "truncated",
    "minibatch_loss": "loss",  # transformers' own average forgets what came before an interrupt
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
    "completions/max_length": "response_tokens_max",
    "completions/min_length": "response_tokens_min",
    f"rewards/{OVERLONG}/mean": "overlong_penalty",
    **{theirs: ours for ours, theirs in LOGGER_NAMES.items()},
}
_CLOCK = "clock.json"  # beside each checkpoint
_NOT_RECORDED = ("loss", "num_tokens", "step_time", "num_input_tokens_seen", "total_flos")


class RunRecorder(TrainerCallback):  # type: ignore[misc]
    """Writes one line of metrics a rollout batch, with a held-out evaluation where one is due.

    Every process takes part in gathering and evaluating; the main one writes.

    With each evaluation go the token-by-token samples of the update before it.

    Expects `logging_steps` to be the number of optimizer steps a rollout batch.
    """

    def __init__(
        self,
        run: RunDirectory,
        account: Callable[[], RolloutAccount],
        evaluate: Callable[[int], Evaluation],
        listener: Listener,
        *,
        tell_loggers: Callable[[dict[str, float]], None],
        diagnostics: Diagnostics,
        updates_per_batch: int,
        eval_every: int,
        samples: int,
        last_batch: int,
        checkpoint: Path | None = None,
    ) -> None:
        self._run, self._account, self._evaluate, self._listener = run, account, evaluate, listener
        self._updates, self._eval_every, self._last = updates_per_batch, eval_every, last_batch
        self._diagnostics, self._samples, self._tell_loggers = diagnostics, samples, tell_loggers
        self._before, self._batch_before = _read_clock(checkpoint)
        self.evaluation: Evaluation | None = None
        self._started = self._batch_started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock of training so far, evaluations and interrupted parts included."""
        return self._before + time.perf_counter() - self._started

    @property
    def _batch_seconds(self) -> float:
        return self._batch_before + time.perf_counter() - self._batch_started

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._started = self._batch_started = time.perf_counter()

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
        if (
            logs is None or "learning_rate" not in logs or not at_boundary
        ):  # the end of a run, or an evaluation
            return
        batch = state.global_step // self._updates
        record = {"batch": batch, "step": state.global_step, **_metrics(logs), **self._costs()}
        if batch == self._last or (self._eval_every and batch % self._eval_every == 0):
            self.evaluation = self._evaluate(batch)
            record |= heldout_metrics(self.evaluation)
            summary = self.evaluation.summary().items()
            self._tell_loggers({f"eval_{name.replace('@', '_at_')}": value for name, value in summary})
            rows = self._diagnostics.samples(self._samples) if state.is_world_process_zero else []
            if rows:
                self._run.write_samples(batch, rows)
        record["seconds"] = round(self.seconds, 3)
        if state.is_world_process_zero:
            self._run.append(record, self._diagnostics.line)
            self._listener.recorded(record)
        self._batch_before, self._batch_started = 0.0, time.perf_counter()

    def write_clock(self, folder: Path) -> None:
        """Put the clocks into a checkpoint being written."""
        clock = {"seconds": self.seconds, "batch_seconds": self._batch_seconds}
        write_json(folder / _CLOCK, clock)

    def _costs(self) -> dict[str, Any]:
        account, wall = self._account(), self._batch_seconds
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


def _read_clock(checkpoint: Path | None) -> tuple[float, float]:
    """Seconds of the run, and of the rollout batch under way, when the checkpoint was saved."""
    path = checkpoint / _CLOCK if checkpoint else None
    if path is None or not path.is_file():  # a trainer's in Python: it has no clock
        return 0.0, 0.0
    clock = json.loads(path.read_text(encoding="utf-8"))
    return clock["seconds"], clock["batch_seconds"]


class StopCleanly(TrainerCallback):  # type: ignore[misc]
    """On the first interrupt, finish the optimizer step under way, save a checkpoint and stop.

    Args:
        agree: makes of this process's wish that of all: a signal may reach one process only, or each at another
            step, and one that stops alone leaves the others waiting.
    """

    def __init__(self, agree: Callable[[bool], bool] = bool) -> None:
        self.asked = False
        self._agree = agree

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._agree(self.asked) and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into `asked`; a second signal of the same kind interrupts at once.

        A launcher passes a Ctrl-C on as SIGTERM, to processes that have got it from the terminal already.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: Any) -> None:
            self.asked = True
            signal.signal(number, before[signal.Signals(number)])

        try:
            for number in before:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def heldout_metrics(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation's figures under the names a record and a summary use."""
    return {f"heldout_{name}": value for name, value in evaluation.summary().items()}


def _metrics(logs: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name, value in logs.items():
        if name in _RENAMED:
            metrics[_RENAMED[name]] = value
        elif "/" not in name and name not in _NOT_RECORDED:
            metrics[name] = value
    return metrics
