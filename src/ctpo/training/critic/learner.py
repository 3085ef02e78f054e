"""The critic of a trainer: it values the responses of a rollout batch, and learns from their returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.objectives.numerics import prefix_dtype
from ctpo.training.config.critic import critic_knobs
from ctpo.training.critic.estimates import estimates, normalised, returns_of
from ctpo.training.critic.figures import ValueSums
from ctpo.training.critic.loss import value_loss
from ctpo.training.critic.model import value_model
from ctpo.training.diagnostics.profile import position_edges
from ctpo.training.scoring.parts import PartScorer
from ctpo.training.scoring.rows import Rows
from ctpo.training.step.guards import NonFiniteUpdates, UpdateGuard
from ctpo.training.step.minibatches import dealt_order
from ctpo.training.step.state import check_optimizer
from ctpo.training.view import TrainerView

_FILE: Final = "critic.pt"


@dataclass(kw_only=True)
class _Batch:
    """The responses of a rollout batch in this process, as the critic sees them."""

    rows: Rows
    rewards: Tensor
    """[B, T]"""
    log_ratios: Tensor | None
    """[B, T] of the learning policy to the one that sampled, if returns are corrected."""
    values: Tensor
    """[B, T] before the critic learned from them."""
    targets: Tensor
    """[B, T]"""
    advantages: Tensor
    """[B, T]"""

    @classmethod
    def of(cls, rows: Rows, rewards: Tensor, log_ratios: Tensor | None) -> _Batch:
        blank = {name: torch.zeros_like(rewards) for name in ("values", "targets", "advantages")}
        return cls(rows=rows, rewards=rewards, log_ratios=log_ratios, **blank)

    def estimate(self, index: Tensor, values: Tensor, knobs: dict[str, Any]) -> None:
        """Fill in what the values [b, T] of some rows say."""
        ratios = None if self.log_ratios is None else self.log_ratios[index]
        found = estimates(self.rewards[index], values, self.rows.wanted[index], knobs, ratios)
        self.values[index], self.targets[index] = values.to(self.values), found.targets
        self.advantages[index] = found.advantages

    def saved(self) -> dict[str, Any]:
        return {"rows": vars(self.rows), "targets": self.targets}


class Critic:
    """Gives the advantages [B, T] of rollout batches, and learns from each before the policy does.

    Every process has one and makes the same calls.

    Raises:
        UserError: if the weights are sharded over processes, or the settings do not fit the model.
    """

    def __init__(self, trainer: TrainerView, scorer: PartScorer) -> None:
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError(
                "advantages=gae needs whole weights in every process, which FSDP and DeepSpeed do not keep; use plain "
                "data parallelism, or another advantages"
            )
        args = trainer.args
        self.knobs = critic_knobs(args.critic)
        self._trainer, self._scorer = trainer, scorer
        self.model = value_model(trainer, scorer, self.knobs, args.seed)
        rate, decay = self.knobs["learning_rate"], self.knobs["weight_decay"]
        self.optimizer = torch.optim.AdamW(self.model.learned().values(), lr=rate, weight_decay=decay)
        self.batches = 0
        """Rollout batches that the critic has learned from."""
        self.curves: dict[str, list[float | None]] = {}
        """Figures of the last rollout batch by position."""
        self._guard = UpdateGuard(args.max_nonfinite_updates)
        self._replay: deque[_Batch] = deque(maxlen=int(self.knobs["replay"]))
        self._edges = position_edges(args.max_completion_length)
        self._norms: list[float] = []

    @property
    def holds_policy(self) -> bool:
        """Whether the policy must not move on the present rollout batch, because the critic is warming up."""
        return self.batches <= int(self.knobs["warmup_batches"])

    @property
    def corrects(self) -> bool:
        """Whether the critic needs the log-ratios of the learning policy to the one that sampled."""
        return bool(self.knobs["correction"] == "v-trace")

    def learn(
        self, rows: Rows, rewards: Tensor, log_ratios: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The advantages [B, T] of a rollout batch, and its figures. Afterwards the critic has learned from it.

        Args:
            rows: of this process. The wanted tokens are those that the model sampled in responses with a reward.
            rewards: [B, T].
            log_ratios: [B, T] of the learning policy to the one that sampled, if the critic `corrects`.

        Raises:
            NonFiniteUpdates: if too many of the critic's updates in a row were not finite.
        """
        self.batches += 1
        batch = _Batch.of(rows, rewards, log_ratios)
        if self.batches == 1:
            self._start_at_mean(batch)
        epochs = self.knobs["warmup_epochs"] if self.holds_policy else None
        self._norms.clear()
        for epoch in range(int(epochs or self.knobs["epochs"])):
            for old in self._replay:
                self._fit(old, clips=False)
            self._fit(batch, clips=True, first=epoch == 0)
        figures = self._figures(batch)
        advantages = self._normalised(batch)
        self._replay.append(batch)
        return advantages, figures

    def value(self, rows: Rows, rewards: Tensor, log_ratios: Tensor | None) -> Tensor:
        """The advantages [B, T] of responses that the critic does not learn from, such as those of an evaluation."""
        batch = _Batch.of(rows, rewards, log_ratios)
        with torch.no_grad():
            for index in self._packs(batch, torch.arange(len(rows), device=rewards.device)):
                batch.estimate(index, self.model.values(rows.take(index)), self.knobs)
        return self._normalised(batch)

    def save(self, folder: Path) -> None:
        """Write weights and moments into the folder of a checkpoint, in the main process."""
        if self._trainer.accelerator.is_main_process:
            weights = {name: each.detach() for name, each in self.model.learned().items()}
            torch.save({"weights": weights, "optimizer": self.optimizer.state_dict()}, folder / _FILE)

    def load(self, checkpoint: Path) -> None:
        """Continue from what `save` wrote.

        Raises:
            UserError: if the checkpoint has no critic.
            ValueError: if it is of another critic.
        """
        if not (checkpoint / _FILE).is_file():
            raise UserError(f"{checkpoint} has no critic ({_FILE}); resume it with the advantages it had")
        device = self.model.head.weight.device
        state = torch.load(checkpoint / _FILE, map_location=device, weights_only=True)
        learned = self.model.learned()
        shapes = {name: tuple(each.shape) for name, each in state["weights"].items()}
        if shapes != {name: tuple(each.shape) for name, each in learned.items()}:
            raise ValueError(f"{_FILE} is of another critic")
        with torch.no_grad():
            for name, value in state["weights"].items():
                learned[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        check_optimizer(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside weights and moments, in this process."""
        return {
            "batches": self.batches,
            "curves": self.curves,
            "guard": self._guard.state_dict(),
            "replay": [batch.saved() for batch in self._replay],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.batches, self.curves = state["batches"], state["curves"]
        self._guard.load_state_dict(state["guard"])
        self._replay.clear()
        for saved in state["replay"]:
            targets = saved["targets"]
            batch = _Batch.of(Rows(**saved["rows"]), torch.zeros_like(targets), None)
            batch.targets = targets
            self._replay.append(batch)

    def _fit(self, batch: _Batch, *, clips: bool, first: bool = False) -> None:
        """One pass over a rollout batch, with one update per minibatch.

        Args:
            batch: its values, targets and advantages are filled in by the first pass.
            clips: whether values may be clipped around those before the first pass.
            first: whether this is the first pass.
        """
        accelerator = self._trainer.accelerator
        minibatches = self._minibatches(len(batch.rows))
        counts = batch.rows.wanted.sum(dim=1)
        totals = torch.stack([counts[index].sum() for index in minibatches])
        totals = accelerator.reduce(totals, reduction="sum").tolist()
        clip = self.knobs["value_clip"] if clips and not first else None
        for index, total in zip(minibatches, totals, strict=True):
            if not total:
                continue
            for pack in self._packs(batch, index):
                values, mask = self.model.values(batch.rows.take(pack)), batch.rows.wanted[pack]
                if first:
                    batch.estimate(pack, values.detach(), self.knobs)
                loss = value_loss(
                    values,
                    batch.targets[pack].to(values),
                    mask,
                    old_values=batch.values[pack].to(values),
                    clip=clip,
                )
                loss = loss / total
                loss.backward()
                self._guard.observe(loss, values, mask)
            self._update()

    def _update(self) -> None:
        accelerator, parameters = self._trainer.accelerator, list(self.model.learned().values())
        for each in parameters:
            if each.grad is None:
                each.grad = torch.zeros_like(each)
        if accelerator.num_processes > 1:
            flat = torch.cat([each.grad.reshape(-1) for each in parameters if each.grad is not None])
            flat = accelerator.reduce(flat, reduction="sum")
            for each, part in zip(parameters, flat.split([each.numel() for each in parameters]), strict=True):
                each.grad = part.view_as(each).clone()
        limit = self.knobs["max_grad_norm"]
        norm = torch.nn.utils.clip_grad_norm_(parameters, torch.inf if limit is None else limit)
        try:
            taken = self._guard.judge(self.model, norm, accelerator)
        except NonFiniteUpdates as error:
            raise NonFiniteUpdates(f"critic: {error} (critic.learning_rate)") from None
        if taken:
            self._norms.append(float(norm))
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _minibatches(self, rows: int) -> tuple[Tensor, ...]:
        """The indices of the responses of each minibatch, which are those of the policy's."""
        args = self._trainer.args
        count = max(1, args.steps_per_generation // args.gradient_accumulation_steps)
        group = args.num_generations if args.whole_groups else 1
        device = self.model.head.weight.device
        return dealt_order(rows, count, group).to(device).chunk(count)

    def _packs(self, batch: _Batch, index: Tensor) -> Iterator[Tensor]:
        """The rows of a minibatch that have a token to value, as many together as the limit of tokens allows."""
        chosen = index[batch.rows.wanted[index].any(dim=1)]
        if len(chosen):
            yield from self._scorer.packs(batch.rows, chosen, self.model.pass_name)

    def _start_at_mean(self, batch: _Batch) -> None:
        """Let the first values be the mean return, from where the critic learns faster than from 0."""
        mask = batch.rows.wanted
        returns = returns_of(batch.rewards, mask, self.knobs)
        total, count = self._trainer.accelerator.reduce(
            torch.stack([returns.sum(), mask.sum().to(returns)]), reduction="sum"
        ).unbind()
        with torch.no_grad():
            self.model.head.bias.add_((total / count.clamp(min=1)).to(self.model.head.bias))

    def _normalised(self, batch: _Batch) -> Tensor:
        accelerator, how = self._trainer.accelerator, self.knobs["normalise"]
        return normalised(batch.advantages, batch.rows.wanted, how, accelerator)

    def _figures(self, batch: _Batch) -> dict[str, Tensor]:
        mask, sums = batch.rows.wanted, ValueSums(self._edges)
        sums.add(batch.values, returns_of(batch.rewards, mask, self.knobs), batch.targets, mask)
        figures, self.curves = sums.close(self._trainer.accelerator)
        figures["critic_skipped_updates"] = self._guard.flush()
        if self._norms:
            figures["critic_grad_norm"] = sum(self._norms) / len(self._norms)
        dtype = prefix_dtype(mask.device)
        return {name: torch.tensor(value, dtype=dtype, device=mask.device) for name, value in figures.items()}
