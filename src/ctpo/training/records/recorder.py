"""Writes a run's records while TRL trains, whatever started the run and wherever its log has its own figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ctpo.runs.checkpoints import Clocks, read_clocks, write_clocks
from ctpo.runs.directory import RunDirectory
from ctpo.training.diagnostics.watch import Diagnostics
from ctpo.training.records.events import Listener
from ctpo.training.records.window import Window
from ctpo.training.sampling.account import RolloutAccount, rollout_figures

_EVALUATION: Final = {
    "eval_reward": "reward",
    "eval_reward_std": "reward_std",
    "eval_completions/mean_length": "tokens",
}
"""Figures of TRL's evaluation that records keep, with their names after `heldout_`."""


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

    def leave_out(self, seconds: float) -> None:
        """Leave this time out of that of the current rollout batch, because an evaluation took it."""
        self._batch_before -= seconds

    def start_batch(self) -> None:
        """Start the time of the next rollout batch."""
        self._batch_before, self._batch_started = 0.0, time.perf_counter()


def time_before(checkpoint: Path | None, records: Sequence[Mapping[str, Any]]) -> Clocks:
    """The time that the parts of a run before an interrupt took: what its checkpoint or its last record says."""
    before = read_clocks(checkpoint)
    recorded = records[-1]["seconds"] if records else 0.0
    return replace(before, seconds=max(before.seconds, recorded))


class Recorded(Protocol):
    """A trainer as its recorder sees it."""

    accelerator: Any
    diagnostics: Diagnostics
    rollout_account: RolloutAccount
    window: Window

    def record_figures(self) -> dict[str, Any]:
        """The figures since the last call, under the names that records use; every process must call."""


class RunRecorder(TrainerCallback):  # type: ignore[misc]
    """Writes one line of metrics per rollout batch, and samples of some updates token by token.

    Where training ends within a rollout batch, `updates` in its record says how many updates the batch had by then. A
    training that goes on from there writes the batch's record again, with all of its updates.

    It depends neither on when the trainer logs nor on when it evaluates. Every process takes part in gathering; the
    main process writes. The record of a rollout batch waits for an evaluation of transformers that is due at the same
    step, and takes its figures.

    Args:
        trainer: what is recorded.
        run: the directory that is written to.
        clock: measures the time of the run.
        listener: gets each record.
        updates_per_batch: optimizer steps per rollout batch.
        samples: largest number of responses to write token by token.
        evaluate: called after each rollout batch in every process; returns held-out figures for the record, or None.
        samples_due: whether samples of this rollout batch are written; they always are with held-out figures.
        resumed_at: optimizer steps of the checkpoint that the run continues from.
        judged: whether a reward is 1 for a right response and 0 for a wrong one, so that its mean is pass@1.
        early_end_is_final: whether training that stops before `max_steps` has ended, and has not been interrupted.
    """

    def __init__(
        self,
        trainer: Recorded,
        run: RunDirectory,
        clock: RunClock,
        listener: Listener,
        *,
        updates_per_batch: int,
        samples: int,
        evaluate: Callable[[int], dict[str, float] | None] = lambda batch: None,
        samples_due: Callable[[int], bool] = lambda batch: False,
        resumed_at: int | None = None,
        judged: bool = False,
        early_end_is_final: bool = True,
    ) -> None:
        self._trainer, self._run, self._clock, self._listener = trainer, run, clock, listener
        self._updates, self._samples = updates_per_batch, samples
        self._evaluate, self._samples_due = evaluate, samples_due
        self._waiting: tuple[dict[str, Any], dict[str, Any] | None] | None = None
        self._heldout: dict[str, float] = {}
        self._resumed_at, self._judged = resumed_at, judged
        self._early_end_is_final = early_end_is_final
        trainer.window.open = True
        trainer.diagnostics.gather_for_records()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._clock.start_training()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.write()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        batch, updates = divmod(state.global_step - 1, self._updates)
        self._listener.progressed(batch + 1, updates + 1)
        if updates + 1 == self._updates:
            self._record(state)
            if args.eval_strategy == "no":
                self.write()
            self._clock.start_batch()

    def _record(self, state: TrainerState) -> None:
        """Let the record of the rollout batch wait to be written; every process must call."""
        batch, updates = -(-state.global_step // self._updates), state.global_step % self._updates
        figures = self._trainer.record_figures()
        line = self._trainer.diagnostics.line
        account = self._trainer.rollout_account.over_processes(self._trainer.accelerator)
        record = {
            "batch": batch,
            "step": state.global_step,
            "epoch": state.epoch,
            **({"updates": updates} if updates else {}),
            **_costs(account, self._clock.batch_seconds),
            **figures,
            **rollout_figures(account),
        }
        evaluated = self._evaluate(batch)
        record |= evaluated or {}
        if state.is_world_process_zero and (evaluated is not None or self._samples_due(batch)):
            rows = self._trainer.diagnostics.samples(self._samples)
            if rows:
                self._run.write_samples(batch, rows)
        self._waiting = (record, line)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.global_step == self._resumed_at:
            return  # as `eval_on_start` asks for; the run that is continued was evaluated there
        figures = evaluation_figures(metrics or {})
        if self._judged and "heldout_reward" in figures:
            figures["heldout_pass@1"] = figures.pop("heldout_reward")
        self._heldout |= figures
        self._clock.leave_out(
            sum(value for key, value in (metrics or {}).items() if key.endswith("_runtime"))
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.write()
        ended = self._early_end_is_final or state.global_step >= state.max_steps
        if ended and state.global_step % self._updates:
            # Not before the last checkpoint: a longer training continues from what it holds of the whole batch.
            self._trainer.diagnostics.close()  # as the trainer does at the end of a batch
            self._record(state)
            self.write()

    def hold(self, record: dict[str, Any]) -> None:
        """Let a record wait for the figures of an evaluation that comes before the next update."""
        self._waiting = (record, None)

    def write(self) -> None:
        """Write the record that waits, if there is one."""
        if self._waiting is None:
            return
        record, line = self._waiting
        record |= {**self._heldout, "seconds": round(self._clock.seconds, 3)}
        self._waiting, self._heldout = None, {}
        if self._trainer.accelerator.is_main_process:
            self._run.append(record, line)
            self._listener.recorded(record)

    def before_checkpoint(self, folder: Path) -> None:
        """Write what a run that is resumed from this checkpoint finds: the records up to it, and the clocks."""
        self.write()
        if self._trainer.accelerator.is_main_process:
            write_clocks(folder, Clocks(seconds=self._clock.seconds, batch_seconds=self._clock.batch_seconds))

    def state_dict(self) -> dict[str, float]:
        """Held-out figures that no record has yet, because they were measured within a rollout batch."""
        return dict(self._heldout)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue from what `state_dict` returned."""
        self._heldout = dict(state)


def evaluation_figures(metrics: dict[str, Any]) -> dict[str, float]:
    """The figures of an evaluation by transformers and TRL that a record keeps, under its names.

    With several evaluation datasets, each figure has the name of its dataset in front.
    """
    name = next((key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")), "eval")
    prefix = "_".join(word for word in ("heldout", name.removeprefix("eval").strip("_")) if word)
    return {
        f"{prefix}_{ours}": metrics[theirs]
        for theirs, ours in _EVALUATION.items()
        if metrics.get(theirs) is not None
    }


def _costs(account: RolloutAccount, wall: float) -> dict[str, Any]:
    """What a rollout batch cost, in seconds, tokens per second and tool calls."""
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
    }
