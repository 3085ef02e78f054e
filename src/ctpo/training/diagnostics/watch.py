"""The diagnostics of a trainer: they take what it scores, and give the figures of each rollout batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ctpo.training.diagnostics.drift import EngineDrift
from ctpo.training.diagnostics.gradients import UpdateGradients
from ctpo.training.diagnostics.online import OnlineBand
from ctpo.training.diagnostics.profile import PositionProfile, ProfileSums
from ctpo.training.diagnostics.pull import null_sizes
from ctpo.training.diagnostics.record import profile_figures, profile_line
from ctpo.training.diagnostics.samples import sample_rows
from ctpo.training.scoring.microbatch import MicroBatch, Scored
from ctpo.training.view import TrainerView

Reader = Literal["log", "record"]
"""Who reads the figures: the trainer's log, at any step, and the records, at the end of each rollout batch."""


@dataclass
class _Gathered:
    """What one reader has not read yet."""

    drift: EngineDrift = field(default_factory=EngineDrift)
    closed: ProfileSums | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": None if self.closed is None else self.closed.flat(),
            "drift": self.drift.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], edges: list[int]) -> None:
        known = "sums" in state  # an earlier release gathered other sums
        self.closed = (
            ProfileSums.from_flat(state["sums"], edges) if known and state["sums"] is not None else None
        )
        self.drift.load_state_dict(state["drift"])


class Diagnostics:
    """Measures a trainer's profile by position, and its drift from the rollout engine.

    Every process has one and makes the same calls. A rollout batch is closed when the trainer logs after its last
    update, or at the latest when the next one is generated. With `diagnostics=False` nothing is measured.
    """

    def __init__(self, trainer: TrainerView) -> None:
        self._trainer, self._on = trainer, trainer.args.diagnostics
        self._profile = PositionProfile(lambda: trainer.objective, trainer.args.max_completion_length)
        self._gradients = UpdateGradients(trainer)
        self._gathered = {"log": _Gathered()}
        args = trainer.args
        self._online = (
            OnlineBand(args.objective_settings(), args.build_objective) if args.calibrate_online else None
        )
        self._used: dict[str, float] = {}
        self._extremes: dict[str, float] = {}
        self._open = False
        self._objective = trainer.objective
        """The objective that the last closed rollout batch was trained with."""
        self.line: dict[str, Any] | None = None
        """The profile that belongs to the figures logged last, as a line of `profile.jsonl`."""
        self.last: list[Scored] = []
        """The parts of the micro-batch that was trained on last."""

    @property
    def wants_details(self) -> bool:
        """Whether the objective must return its details, because a second call would not give the same."""
        return self._on and not self._trainer.objective.row_wise

    def null_sizes(self, advantages: Tensor) -> Tensor | None:
        """[B] the mean |A| of each response's group, for the micro-batches (`MicroBatch.null_sizes`).

        None for advantages per token, which a group cannot exchange. Every process must call.
        """
        if not self._on or advantages.ndim != 1:
            return None
        accelerator = self._trainer.accelerator
        sizes = null_sizes(accelerator.gather(advantages), self._trainer.args.num_generations)
        first = accelerator.process_index * len(advantages)
        return None if sizes is None else sizes[first : first + len(advantages)]

    def generated(self, rollouts: MicroBatch) -> None:
        """Add the drift of a rollout batch that was just generated, if the trainer has scored it too."""
        if self._on and rollouts.old_logps is not None and rollouts.rollout_logps is not None:
            self._add_drift(rollouts.old_logps, rollouts.rollout_logps, rollouts.response_mask)

    def starting(self, rows: int) -> None:
        """Measure the gradient so far, before a micro-batch of training with this many responses adds to it."""
        if self._on:
            self._gradients.starting(rows)

    def updated(self, norm: Any) -> None:
        """Take the norm of an update's gradient before it is clipped."""
        if self._on:
            self._gradients.updated(norm, self._trainer.state.global_step)

    def observe(self, done: list[Scored], rows: int) -> None:
        """Add one micro-batch of training with this many responses, in the parts in which it was scored."""
        if not self._on:
            return
        if sum(len(part.batch) for part in done) < rows:
            self._profile.left_out(done[0].logps.device)
        self._open, self.last = True, done
        for part in done:
            batch = part.batch
            self._profile.add(
                *(part.logps, part.anchor_logps, part.signal, batch.response_mask, part.details),
                update=self._trainer.state.global_step,
                null_size=None if batch.null_sizes is None else batch.weighted(batch.null_sizes),
            )
            if batch.rollout_logps is not None and batch.old_logps is None and self._same_weights():
                self._add_drift(part.logps, batch.rollout_logps, batch.response_mask)

    def close(self) -> None:
        """End the rollout batch, and fit the next band if it is calibrated online. Every process must call."""
        if not self._open:
            return
        self._open = False
        accelerator = self._trainer.accelerator
        sums = self._profile.close(accelerator, self._gradients.close(accelerator))
        if self._profile.extremes is not None:
            names = ("clip_ratio/low_min", "clip_ratio/high_max")
            self._extremes = dict(zip(names, self._profile.extremes, strict=True))
        if sums is None:
            return
        self._objective = self._trainer.objective
        for reader in self._gathered.values():
            reader.closed = sums if reader.closed is None else reader.closed + sums
        if self._online is not None:
            self._used = self._online.figures()
            self._trainer.objective = self._online.update(sums)

    def gather_for_records(self) -> None:
        """Gather for records too from now on, apart from what is logged."""
        self._gathered.setdefault("record", _Gathered())

    def figures(self, reader: Reader = "log") -> dict[str, float]:
        """The figures of the rollout batches closed since this reader's last call. Every process must call.

        Names with a slash are for loggers only.
        """
        if not self._on:
            return {}
        if self._trainer.at_batch_end:
            self.close()
        gathered = self._gathered[reader]
        figures = gathered.drift.flush(self._trainer.accelerator)
        closed, gathered.closed, self.line = gathered.closed, None, None
        if reader == "log":
            figures |= self._extremes
            self._extremes = {}
        if closed is not None:
            self.line = profile_line(closed, self._objective)
            figures |= profile_figures(closed) | self._used
        return figures

    def samples(self, limit: int) -> list[dict[str, Any]]:
        """At most `limit` responses of the last micro-batch in this process, token by token.

        docs/reference/diagnostics.md describes the keys.
        """
        return sample_rows(self.last, self._objective, self._trainer.processing_class, limit)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run continues from."""
        online = None if self._online is None else self._online.state_dict()
        gathered = {name: reader.state_dict() for name, reader in self._gathered.items()}
        state = {
            "open": self._open,
            "profile": self._profile.state_dict(),
            "gradients": self._gradients.state_dict(),
            "online": online,
        }
        return {**state, **gathered.pop("log"), **gathered, "used": self._used, "extremes": self._extremes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._open = state["open"]
        for name, reader in self._gathered.items():  # a run of an earlier release logged what it recorded
            reader.load_state_dict(state.get(name, state), self._profile.edges)
        self._profile.load_state_dict(state["profile"])
        if "gradients" in state:
            self._gradients.load_state_dict(state["gradients"])
        self._used = dict(state["used"])
        self._extremes = dict(state.get("extremes", {}))
        if self._online is not None:
            self._online.load_state_dict(state["online"])
            self._trainer.objective = self._online.objective()

    def _add_drift(self, logps: Tensor, engine_logps: Tensor, mask: Tensor) -> None:
        for reader in self._gathered.values():
            reader.drift.add(logps, engine_logps, mask)

    def _same_weights(self) -> bool:
        """Whether the current weights are those that sampled: no update since, and no lag of the sampling policy."""
        trainer = self._trainer
        return not trainer.policy_lag and bool(
            trainer._step % trainer.batch_steps < trainer.current_gradient_accumulation_steps
        )
