"""The loss of one micro-batch: scored in parts, weighed by the objective, with the penalties of the settings added."""

from __future__ import annotations

from typing import Any, Final, Protocol

import torch
from torch import Tensor
from trl import GRPOTrainer

from ctpo.objectives.penalties import kl_penalty
from ctpo.training.diagnostics.watch import Diagnostics
from ctpo.training.records.window import Window
from ctpo.training.scoring.microbatch import MicroBatch, Scored
from ctpo.training.scoring.parts import Part, PartScorer, learns_from_entropy
from ctpo.training.scoring.stats import StatsAccumulator, masked_mean, stats_of_parts
from ctpo.training.step.entropy import EntropyView, entropy_penalty_of
from ctpo.training.step.guards import UpdateGuard
from ctpo.training.step.masks import masked_advantages
from ctpo.training.step.reference import kl_weights
from ctpo.training.step.warnings import warn_if_engines_differ
from ctpo.training.view import TrainerView

NO_ROLLOUT_LOGPS: Final = (
    "anchor='rollout' needs the rollout engine's log-probs, which TRL's own generation does not report; "
    "leave environment_factory to anchor='old', or give the environment to a task: Task(environment=...)"
)


class LossView(EntropyView, TrainerView, Protocol):
    """What the loss may know of the trainer: its settings, what scores, and what keeps figures."""

    guard: UpdateGuard
    diagnostics: Diagnostics
    window: Window
    part_scorer: PartScorer
    objective_stats: dict[str, StatsAccumulator]
    top_entropy_quantile: float
    """Share of the tokens, those of highest entropy, that the policy loss learns from."""
    router_aux_loss_coef: float
    _metrics: Any

    def get_high_entropy_mask(self, entropies: Tensor, mask: Tensor, threshold: float) -> Tensor:
        """TRL's mask [B, T] of the tokens whose entropy is in the highest share."""


class PolicyLoss:
    """The loss of a trainer's micro-batches.

    A micro-batch is scored in one or several parts. The backward pass of every part but the last is taken here, so that
    one part's activations are held at a time.
    """

    def __init__(self, trainer: LossView) -> None:
        self._trainer = trainer

    def __call__(self, model: Any, batch: MicroBatch) -> Tensor:
        """The micro-batch's share of the loss. All parts of it but the last have been through the backward pass."""
        trainer, training = self._trainer, bool(self._trainer.model.training)
        if training:
            trainer.diagnostics.starting(len(batch))
        parts = trainer.part_scorer.parts(model, batch)
        done: list[Scored] = []
        for part in parts[:-1]:
            with trainer.accelerator.no_sync(model):
                scored = self._of_part(model, part)
                if training:
                    trainer.accelerator.backward(scored.loss)
            done.append(scored.detached())
        scored = self._of_part(model, parts[-1])
        done.append(scored.detached())
        stats = stats_of_parts(done, batch, trainer.objective, with_kl=trainer.beta != 0.0)
        policy_loss = torch.stack([part.policy_loss for part in done]).sum()
        stats["minibatch_loss"] = policy_loss * self._accumulation()
        trainer.objective_stats["train" if training else "eval"].add(stats)
        if training:
            trainer.window.add(stats)
            trainer.diagnostics.observe(done, len(batch))
        return scored.loss + sum(part.loss for part in done[:-1])

    def _of_part(self, model: Any, part: Part) -> Scored:
        trainer, batch, mask_BT = self._trainer, part.batch, part.batch.response_mask
        logps_BT, entropies_BT, aux_loss = self._score(model, part)
        anchor_BT = self._anchor(batch, logps_BT)
        top_BT = None
        if trainer.top_entropy_quantile < 1.0:
            threshold = 1 - trainer.top_entropy_quantile
            top_BT = trainer.get_high_entropy_mask(entropies_BT.detach(), mask_BT, threshold)
        advantages = masked_advantages(trainer, batch, logps_BT, anchor_BT, top_BT)
        output = trainer.objective(
            logps_BT,
            anchor_BT,
            advantages,
            mask_BT,
            num_tokens=batch.num_tokens,
            num_sequences=batch.num_sequences,
            weights=batch.rollout_weights,
            rejection_mask=batch.rejection_mask,
            turn_ids=batch.turn_ids if trainer.objective.needs_turns else None,
            details=trainer.diagnostics.wants_details and trainer.model.training,
        )
        stats = {**output.stats, "entropy": masked_mean(entropies_BT, mask_BT)}
        loss = output.loss
        if trainer.beta != 0.0:
            penalty, stats["kl"] = self._kl(batch, logps_BT, anchor_BT)
            loss = loss + trainer.beta * penalty
        if trainer.model.training:
            # The totals count all processes, so the averaging of gradients over processes must be undone.
            loss = loss * trainer.accelerator.num_processes
        policy_loss = loss
        if learns_from_entropy(trainer):
            learning_BT = mask_BT if top_BT is None else mask_BT & top_BT
            loss = loss + entropy_penalty_of(trainer, entropies_BT, learning_BT)
            if trainer.model.training and trainer.accelerator.sync_gradients:
                trainer._metrics["train"]["entropy_coef"].append(trainer.entropy_coef)
        if aux_loss is not None:
            loss = loss + trainer.router_aux_loss_coef * aux_loss / self._accumulation()
            stats["aux_loss"] = aux_loss
        if trainer.model.training:
            trainer.guard.observe(loss, logps_BT, mask_BT)
        return Scored(
            batch=batch,
            loss=loss,
            policy_loss=policy_loss,
            advantages=advantages,
            logps=logps_BT,
            anchor_logps=anchor_BT,
            entropies=entropies_BT,
            stats=stats,
            details=output.details,
        )

    def _kl(self, batch: MicroBatch, logps_BT: Tensor, anchor_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty for leaving the reference model, reduced as the objective, and its mean over the tokens."""
        trainer, mask_BT = self._trainer, batch.response_mask
        assert batch.reference_logps is not None  # TRL scores the reference model where beta is not 0
        kl_BT = kl_penalty(logps_BT, batch.reference_logps)
        penalty_BT = kl_BT
        if trainer.args.use_bias_correction_kl:
            penalty_BT = kl_BT * kl_weights(trainer.objective, logps_BT, anchor_BT, mask_BT)
        penalty = trainer.objective.reduce(
            penalty_BT, batch.counted, num_tokens=batch.num_tokens, num_sequences=batch.num_sequences
        )
        return penalty, masked_mean(kl_BT, mask_BT)

    def _score(self, model: Any, part: Part) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs [B, T] and entropies [B, T] of the response tokens under the model being trained, and the
        load-balancing loss of a mixture of experts."""
        trainer, batch = self._trainer, part.batch
        if part.pass_name != "plain":
            return *trainer.part_scorer.score(model, part), None
        scored: tuple[Tensor, Tensor, Tensor | None] = GRPOTrainer._get_per_token_logps_and_entropies(
            trainer,
            model,
            torch.cat([batch.prompt_ids, batch.completion_ids], dim=1),
            torch.cat([batch.prompt_mask, batch.completion_mask], dim=1),
            batch.completion_ids.size(1),
            compute_entropy=True,
            compute_aux_loss=trainer.aux_loss_enabled,
            **batch.multimodal,
        )
        return scored

    def _anchor(self, batch: MicroBatch, logps_BT: Tensor) -> Tensor:
        """The log-probs in the denominator of the ratio.

        Where TRL has recomputed none, because no update was taken since the rollout, they are the current ones.
        """
        trainer = self._trainer
        if trainer.args.anchor == "old":
            return logps_BT.detach() if batch.old_logps is None else batch.old_logps
        if batch.rollout_logps is None:
            raise ValueError(NO_ROLLOUT_LOGPS)
        if trainer._step == 0 and trainer.model.training:
            warn_if_engines_differ(logps_BT, batch.rollout_logps, batch.response_mask)
        return batch.rollout_logps

    def _accumulation(self) -> int:
        trainer = self._trainer
        return int(trainer.current_gradient_accumulation_steps) if trainer.model.training else 1
