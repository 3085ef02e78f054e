"""The critic of a trainer: it values the responses of a rollout batch, and learns from their returns."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from ctpo.errors import UserError
from ctpo.objectives.numerics import prefix_dtype
from ctpo.training.config.critic import critic_knobs
from ctpo.training.critic.estimates import estimates, normalised, returns_of
from ctpo.training.critic.figures import ValueSums
from ctpo.training.critic.least_squares import LeastSquares
from ctpo.training.critic.loss import value_loss
from ctpo.training.critic.model import ValueModel, policy_states, value_model
from ctpo.training.critic.surprise import COUNT, surprise
from ctpo.training.diagnostics.profile import position_edges
from ctpo.training.scoring.parts import PartScorer, States
from ctpo.training.scoring.rows import Rows
from ctpo.training.step.guards import NonFiniteUpdates, UpdateGuard
from ctpo.training.step.minibatches import dealt_order
from ctpo.training.step.state import check_optimizer
from ctpo.training.view import TrainerView

_FILE: Final = "critic.pt"


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The responses of a rollout batch in this process: what a critic is given."""

    rows: Rows
    """The wanted tokens are those that the model sampled in responses with a reward."""
    rewards: Tensor
    """[B, T]"""
    logps: Tensor
    """[B, T] of the sampled tokens under the policy that sampled them, nats."""
    log_ratios: Tensor | None = None
    """[B, T] of the learning policy to the one that sampled, if the critic `corrects`."""
    states: States | None = None
    """The policy's hidden states of these tokens, if a pass that ran anyway has kept them."""


@dataclass(kw_only=True)
class _Batch:
    """The responses of a rollout batch in this process, and what the critic has made of them."""

    rows: Rows
    rewards: Tensor
    """[B, T]"""
    log_ratios: Tensor | None
    """[B, T]"""
    features: Tensor
    """[B, T, 5] of surprise."""
    values: Tensor
    """[B, T] before the critic learned from them."""
    targets: Tensor
    """[B, T]"""
    advantages: Tensor
    """[B, T]"""
    states: States | None = None

    @classmethod
    def of(cls, given: Responses) -> _Batch:
        rewards, rows = given.rewards, given.rows
        blank = {name: torch.zeros_like(rewards) for name in ("values", "targets", "advantages")}
        return cls(
            rows=rows,
            rewards=torch.where(rows.wanted, rewards, torch.zeros_like(rewards)),
            log_ratios=given.log_ratios,
            features=surprise(given.logps.to(rewards), rows.wanted),
            states=given.states,
            **blank,
        )

    def estimate(self, index: Tensor, values: Tensor, knobs: dict[str, Any]) -> None:
        """Fill in what the values [b, T] of some rows say."""
        ratios = None if self.log_ratios is None else self.log_ratios[index]
        found = estimates(self.rewards[index], values, self.rows.wanted[index], knobs, ratios)
        self.values[index], self.targets[index] = values.to(self.values), found.targets
        self.advantages[index] = found.advantages

    def saved(self) -> dict[str, Any]:
        names = ("rewards", "log_ratios", "features", "values", "targets", "advantages")
        return {"rows": vars(self.rows), **{name: getattr(self, name) for name in names}}


class Critic:
    """Gives the advantages [B, T] of rollout batches, and learns from each before the policy does.

    A value is linear in the features of `surprise`, and with a shared trunk in the policy's hidden state too; this part
    is solved by least squares. With a copied trunk, what that part leaves over is learned by gradient.

    Every process has one and makes the same calls.

    Raises:
        UserError: if the weights are sharded over processes and there is a trunk, or the settings do not fit the model.
    """

    def __init__(self, trainer: TrainerView, scorer: PartScorer) -> None:
        args = trainer.args
        self.knobs = critic_knobs(args.critic)
        self._trunk: str = self.knobs["trunk"]
        if self._trunk != "none" and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            raise UserError(
                f"critic.trunk={self._trunk} needs whole weights in every process, which FSDP and DeepSpeed do not "
                "keep; use trunk: none, plain data parallelism, or engine=verl, which shards its critic"
            )
        self._trainer, self._scorer = trainer, scorer
        self.model: ValueModel | None = None
        """What is learned by gradient, with a copied trunk."""
        if self._trunk == "copy":
            self.model = value_model(trainer, scorer, self.knobs, args.seed)
            rate, decay = self.knobs["learning_rate"], self.knobs["weight_decay"]
            self.optimizer = torch.optim.AdamW(self.model.learned().values(), lr=rate, weight_decay=decay)
        self._count = max(1, args.steps_per_generation // args.gradient_accumulation_steps)
        self.linear = LeastSquares(max(0.0, 1 - 1 / (self.knobs["memory"] * self._count)))
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

    @property
    def reads_states(self) -> bool:
        """Whether the critic reads the policy's hidden states, which a pass that runs anyway may keep for it."""
        return self._trunk == "shared"

    def learn(self, given: Responses) -> tuple[Tensor, dict[str, Tensor]]:
        """The advantages [B, T] of a rollout batch, and its figures. Afterwards the critic has learned from it.

        Where all returns are equal, over all processes, the advantages are 0. Otherwise the errors of the values would
        be normalised to the size of a signal.

        Raises:
            NonFiniteUpdates: if too many of the critic's updates in a row were not finite.
        """
        self.batches += 1
        batch = _Batch.of(given)
        if self.linear.weights is None:
            self._start_at_mean(batch)
        epochs = self.knobs["warmup_epochs"] if self.holds_policy else None
        self._norms.clear()
        for epoch in range(int(epochs or self.knobs["epochs"])):
            for old in self._replay:
                self._fit(old, clips=False, estimates=True)
            self._fit(batch, clips=epoch > 0, estimates=epoch == 0, solves=epoch == 0)
        figures = self._figures(batch)
        varied = "critic_explained_variance" in figures
        advantages = self._normalised(batch) if varied else torch.zeros_like(batch.advantages)
        self._replay.append(replace(batch, states=None))
        return advantages, figures

    def value(self, given: Responses) -> Tensor:
        """The advantages [B, T] of responses that the critic does not learn from, such as those of an evaluation."""
        batch = _Batch.of(given)
        if self.linear.weights is None:
            self._start_at_mean(batch)
        with torch.no_grad():
            for index in self._packs(batch, torch.arange(len(batch.rows), device=batch.rewards.device)):
                batch.estimate(index, self._values(batch, index)[0], self.knobs)
        return self._normalised(batch)

    def save(self, folder: Path) -> None:
        """Write weights and moments into the folder of a checkpoint, in the main process."""
        if self._trainer.accelerator.is_main_process:
            state: dict[str, Any] = {"linear": self.linear.state_dict()}
            if self.model is not None:
                state |= {"weights": self._weights(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / _FILE)

    def export(self, path: Path) -> None:
        """Write what was learned: the weights of the linear part as `linear`, those of a trunk by their names, and the
        knobs as metadata. To be called in the main process.

        Args:
            path: of a safetensors file.
        """
        weights = {} if self.model is None else self._weights()
        if self.linear.weights is not None:
            weights["linear"] = self.linear.weights
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
        save_file(tensors, path, metadata={"critic": json.dumps(self.knobs)})

    def load(self, checkpoint: Path) -> None:
        """Continue from what `save` wrote.

        Raises:
            UserError: if the checkpoint has no critic.
            ValueError: if it is of another critic.
        """
        if not (checkpoint / _FILE).is_file():
            raise UserError(f"{checkpoint} has no critic ({_FILE}); resume it with the advantages it had")
        device = self._trainer.accelerator.device
        place = "cpu" if device.type == "cpu" else device
        state = torch.load(checkpoint / _FILE, map_location=place, weights_only=True)
        learned = {} if self.model is None else self.model.learned()
        shapes = {name: tuple(each.shape) for name, each in state.get("weights", {}).items()}
        if shapes != {name: tuple(each.shape) for name, each in learned.items()}:
            raise ValueError(f"{_FILE} is of another critic")
        self.linear.load_state_dict(state["linear"])
        if self.model is not None:
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
            self._replay.append(_Batch(**{**saved, "rows": Rows(**saved["rows"])}))

    def _weights(self) -> dict[str, Tensor]:
        assert self.model is not None
        return {name: each.detach() for name, each in self.model.learned().items()}

    def _values(self, batch: _Batch, index: Tensor) -> tuple[Tensor, Tensor]:
        """The values [b, T] of some rows, differentiable if there is a copied trunk, and what they are linear in."""
        features, wanted = batch.features[index], batch.rows.wanted[index]
        if self._trunk == "shared":
            rows = batch.rows.take(index)
            kept = None if batch.states is None else batch.states.of(index, rows.wanted)
            states = policy_states(self._trainer, self._scorer, rows) if kept is None else kept
            wide = features.new_zeros(*wanted.shape, states.shape[-1])
            wide[wanted] = states.to(wide)
            features = torch.cat([features, wide], dim=-1)
        values = self.linear.values(features)
        if self.model is not None:
            values = values + self.model.values(batch.rows.take(index))
        return values, features[wanted]

    def _fit(self, batch: _Batch, *, clips: bool, estimates: bool, solves: bool = False) -> None:
        """One pass over a rollout batch, with one update per minibatch.

        Args:
            batch: its values, targets and advantages may be filled in.
            clips: whether values may be clipped around those before the first pass.
            estimates: whether values, targets and advantages are those of the present values.
            solves: whether the linear part learns too.
        """
        accelerator = self._trainer.accelerator
        minibatches = self._minibatches(len(batch.rows))
        counts = batch.rows.wanted.sum(dim=1)
        totals = torch.stack([counts[index].sum() for index in minibatches])
        totals = accelerator.reduce(totals, reduction="sum").tolist()
        clip = self.knobs["value_clip"] if clips else None
        for index, total in zip(minibatches, totals, strict=True):
            if not total:
                continue
            seen: list[tuple[Tensor, Tensor]] = []
            for pack in self._packs(batch, index):
                values, features = self._values(batch, pack)
                mask = batch.rows.wanted[pack]
                if estimates:
                    batch.estimate(pack, values.detach(), self.knobs)
                seen.append((features, batch.targets[pack][mask]))
                if self.model is not None:
                    targets, before = (each[pack].to(values) for each in (batch.targets, batch.values))
                    loss = value_loss(values, targets, mask, old_values=before, clip=clip) / total
                    loss.backward()
                    self._guard.observe(loss, values, mask)
            if self.model is not None:
                self._update(self.model)
            if solves:
                self._solve(batch, seen)

    def _solve(self, batch: _Batch, seen: list[tuple[Tensor, Tensor]]) -> None:
        assert self.linear.weights is not None
        if seen:
            features, targets = (torch.cat(each) for each in zip(*seen, strict=True))
        else:  # the minibatch's tokens are all in other processes
            features, targets = (
                batch.features.new_zeros(0, len(self.linear.weights)),
                batch.targets.new_zeros(0),
            )
        if not self.linear.learn(features, targets, self._trainer.accelerator):
            self._guard.skipped += 1

    def _update(self, model: ValueModel) -> None:
        accelerator, parameters = self._trainer.accelerator, list(model.learned().values())
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
            taken = self._guard.judge(model, norm, accelerator)
        except NonFiniteUpdates as error:
            raise NonFiniteUpdates(f"critic: {error} (critic.learning_rate)") from None
        if taken:
            self._norms.append(float(norm))
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _minibatches(self, rows: int) -> tuple[Tensor, ...]:
        """The indices of the responses of each minibatch, which are those of the policy's."""
        args = self._trainer.args
        group = args.num_generations if args.whole_groups else 1
        order = dealt_order(rows, self._count, group).to(self._trainer.accelerator.device)
        return order.chunk(self._count)

    def _packs(self, batch: _Batch, index: Tensor) -> Iterator[Tensor]:
        """The rows of a minibatch that have a token to value, as many together as the limit of tokens allows."""
        chosen = index[batch.rows.wanted[index].any(dim=1)]
        if len(chosen) and (self._trunk == "none" or batch.states is not None):
            yield chosen
        elif len(chosen):
            name = self._scorer.pass_of(self._trainer.model) if self.model is None else self.model.pass_name
            yield from self._scorer.packs(batch.rows, chosen, name)

    def _start_at_mean(self, batch: _Batch) -> None:
        """Let the first values be the mean return, from where the critic learns faster than from 0."""
        mask = batch.rows.wanted
        returns = returns_of(batch.rewards, mask, self.knobs)
        total, count = self._trainer.accelerator.reduce(
            torch.stack([returns.sum(), mask.sum().to(returns)]), reduction="sum"
        ).unbind()
        width = COUNT
        if self._trunk == "shared":
            width += self._scorer.unwrapped(self._trainer.model).config.get_text_config().hidden_size
        self.linear.start(width, total / count.clamp(min=1))

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
