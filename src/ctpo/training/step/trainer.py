"""`CTPOTrainer`: TRL's `GRPOTrainer` with the policy objective exchanged.

What is taken over from TRL is listed in `SEAMS`; everything else (data, generation, rewards, group-relative
advantages, optimizer, distribution, logging) is TRL's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from ctpo.cpu.memory import keep_freed_memory
from ctpo.objectives.penalties import kl_penalty
from ctpo.runs.identity import describe_model
from ctpo.training.config.config import CTPOConfig
from ctpo.training.diagnostics.watch import Diagnostics
from ctpo.training.sampling.rollout_func import RolloutAccount, tool_figures
from ctpo.training.scoring.microbatch import (
    FORWARD_EXTRAS,
    Part,
    Scored,
    count_rows,
    loss_mask,
    make_scorer,
    masked_mean,
    parts,
    rows_of,
    score_padded,
    transformers_model,
    weighted_advantages,
    whole_stats,
)
from ctpo.training.scoring.stats import LOGGER_NAMES, StatsAccumulator
from ctpo.training.step.behaviour import Behaviour
from ctpo.training.step.guards import UpdateGuard, refuse_nonfinite_weights
from ctpo.training.step.minibatches import deal
from ctpo.training.step.saving import staged
from ctpo.training.step.state import load_rollout_buffer, save_rollout_buffer
from ctpo.training.step.warnings import warn_if_engines_differ, warn_if_inert

SEAMS: dict[str, tuple[str, ...]] = {
    "_compute_loss": ("self", "model", "inputs"),
    "_prepare_inputs": ("self", "generation_batch"),
    "_get_per_token_logps_and_entropies": (
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *("compute_aux_loss", *FORWARD_EXTRAS),
    ),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "_get_train_sampler": ("self", "dataset"),
    "log": ("self", "logs", "start_time"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_get_output_dir": ("self", "trial"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
}
"""The GRPOTrainer methods overridden here, with the parameters they had in TRL 1.16. A test compares them with
the installed TRL, so that an upgrade that moves one fails there and not in a training run."""

_NO_ROLLOUT_LOGPS = (
    "anchor='rollout' needs the rollout engine's log-probs, which TRL's own generation does not report; "
    "give a rollout_func that returns logprobs, use vLLM, or set anchor='old'"
)


class CTPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer whose loss is an objective of `ctpo.objectives`; same arguments, `args` a [`CTPOConfig`].

    The loss of one optimizer step is the objective reduced over the whole mini-batch: denominators count the
    tokens and responses of all its micro-batches on all processes. Tokens of tools (`tool_mask` 0) enter
    neither ratios, nor positions, nor loss, nor denominators.
    """

    _tag_names = ("trl", "ctpo")
    _name = "CTPO"
    _paper = {  # noqa: RUF012  (overrides TRL's class attribute)
        "title": "Rethinking Importance Sampling in LLM Policy Optimization: A Cumulative Token Perspective",
        "id": "2605.07331",
        "citation": textwrap.dedent("""\
            @article{zhang2026rethinking,
                title  = {Rethinking Importance Sampling in LLM Policy Optimization: A Cumulative Token Perspective},
                author = {Zhang and Ye and Jin and Yu and Xiong and Sahu and Jiang},
                year   = 2026,
                eprint = {arXiv:2605.07331},
            }"""),
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: CTPOConfig | None = None,
        *more: Any,
        **kwargs: Any,
    ) -> None:
        if args is None:
            args = CTPOConfig("ctpo-output")
        if not isinstance(args, CTPOConfig):
            raise ValueError(f"args is a {type(args).__name__}; CTPOTrainer takes a CTPOConfig")
        if args.anchor == "rollout" and not args.use_vllm and kwargs.get("rollout_func") is None:
            raise ValueError(_NO_ROLLOUT_LOGPS)
        self.objective = args.build_objective()
        self.objective_stats = {"train": StatsAccumulator(), "eval": StatsAccumulator()}
        self.rollout_account = RolloutAccount()
        self.guard = UpdateGuard(args.max_nonfinite_updates)
        self.run_identity: dict[str, Any] = {}
        """What the run is, for its checkpoints to say; `ctpo train` puts its recipe here."""
        self.checkpoint_writers: list[Callable[[Path], None]] = []
        """Called in the main process with the folder of each checkpoint being written."""
        self._staging: Path | None = None
        self._totals_of: Any = None
        self._totals = torch.zeros(0, 2)
        warn_if_inert(args)
        if args.keep_freed_memory and args.device.type == "cpu":
            keep_freed_memory()
        super().__init__(model, reward_funcs, args, *more, **kwargs)
        self.scorer = make_scorer(self)
        self.diagnostics = Diagnostics(self)
        self._model_facts = describe_model(self.model)
        self.behaviour = Behaviour(self, args.behaviour_lag)

    # -- the loss ------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The micro-batch's share of the loss; all of its parts but the last have been through the backward pass."""
        mask_BT, training = loss_mask(inputs), self.model.training
        totals = {"num_tokens": mask_BT.sum(), "num_sequences": mask_BT.any(dim=1).sum()}
        inputs = {**{f"minibatch_{name}": total for name, total in totals.items()}, **inputs}
        todo = parts(self, model, inputs, mask_BT)
        done: list[Scored] = []
        for part in todo[:-1]:
            with self.accelerator.no_sync(model):
                scored = self._loss_of(model, part)
                if training:
                    self.accelerator.backward(scored.loss)
            done.append(scored.detached())
        scored = self._loss_of(model, todo[-1])
        done.append(scored.detached())
        stats = whole_stats(self, done, mask_BT)
        stats["minibatch_loss"] = (
            torch.stack([part.policy_loss for part in done]).sum() * self._accumulation()
        )
        self.objective_stats["train" if training else "eval"].add(stats)
        if training:
            self.diagnostics.observe(done)
        return scored.loss + sum(part.loss for part in done[:-1])

    def _loss_of(self, model: Any, part: Part) -> Scored:
        inputs = part.inputs
        mask_BT = loss_mask(inputs)
        logps_BT, entropies_BT, aux_loss = self._score(model, part)
        anchor_BT = self._anchor(inputs, logps_BT)
        totals = {name: inputs[f"minibatch_{name}"] for name in ("num_tokens", "num_sequences")}
        details = self.diagnostics.wants_details and self.model.training
        output = self.objective(
            logps_BT, anchor_BT, weighted_advantages(inputs), mask_BT, **totals, details=details
        )
        stats = {**output.stats, "entropy": masked_mean(entropies_BT, mask_BT)}
        loss = output.loss
        if self.beta != 0.0:
            kl_BT = kl_penalty(logps_BT, inputs["ref_per_token_logps"])
            loss = loss + self.beta * self.objective.reduce(kl_BT, mask_BT, **totals)
            stats["kl"] = masked_mean(kl_BT, mask_BT)
        if (
            self.model.training
        ):  # the totals count all processes, so DDP's averaging of gradients must be undone
            loss = loss * self.accelerator.num_processes
        policy_loss = loss
        if aux_loss is not None:
            loss = loss + self.router_aux_loss_coef * aux_loss / self._accumulation()
            stats["aux_loss"] = aux_loss
        if self.model.training:
            self.guard.observe(loss, logps_BT, mask_BT)
        return Scored(loss, policy_loss, inputs, logps_BT, anchor_BT, entropies_BT, stats, output.details)

    def _score(self, model: Any, part: Part) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs [B, T] and entropies [B, T] of the response tokens under the model being trained."""
        inputs = part.inputs
        if part.way != "plain":
            rows = rows_of(inputs, loss_mask(inputs))
            return *self.scorer.score(model, transformers_model(self, model), rows, part.way), None
        scored: tuple[Tensor, Tensor, Tensor | None] = super()._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in FORWARD_EXTRAS},
        )
        return scored

    def _anchor(self, inputs: dict[str, Any], logps_BT: Tensor) -> Tensor:
        """The denominator of the ratio; the current log-probs themselves where TRL finds no update was taken."""
        name = "sampling_per_token_logps" if self.args.anchor == "rollout" else "old_per_token_logps"
        if name in inputs:
            anchor: Tensor = inputs[name]
            if self.args.anchor == "rollout" and self._step == 0 and self.model.training:
                warn_if_engines_differ(logps_BT, anchor, loss_mask(inputs))
            return anchor
        if self.args.anchor == "rollout":
            raise ValueError(_NO_ROLLOUT_LOGPS)
        return logps_BT.detach()

    @property
    def batch_steps(self) -> int:
        """Micro-batches that are trained on a rollout batch, every pass counted."""
        return int(self.args.steps_per_generation * self.num_iterations)

    @property
    def at_batch_end(self) -> bool:
        """Whether no micro-batch of a rollout batch is left to train on."""
        return bool(self._step % self.batch_steps == 0)

    def _accumulation(self) -> int:
        return int(self.current_gradient_accumulation_steps) if self.model.training else 1

    # -- what TRL hands over -------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self._anchor_pass_is_idle():
            return None, None, None
        scored = score_padded(self, model, *args, **kwargs)
        if scored is not None:
            return scored
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _anchor_pass_is_idle(self) -> bool:
        """Whether TRL is recomputing old log-probs that anchor='rollout' will not read.

        TRL scores without gradient only for that and for the reference model (beta) and vLLM's correction.
        """
        return (
            self.args.anchor == "rollout"
            and self.model.training
            and not torch.is_grad_enabled()
            and self.beta == 0.0
            and not (self.use_vllm and self.vllm_importance_sampling_correction)
        )

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if not self.model.training:
            evaluated: dict[str, Any] = super()._prepare_inputs(generation_batch)
            return evaluated
        parts = self.args.steps_per_generation
        if self.at_batch_end or self._buffered_inputs is None:
            self.diagnostics.close()
            with self.behaviour.sampling():
                rollouts = self._generate_and_score_completions(generation_batch)
            self.diagnostics.generated(rollouts)
            group = self.num_generations if self.args.whole_groups else 1
            self._buffered_inputs: list[dict[str, Any]] = deal(
                rollouts, parts, max(1, parts // self.args.gradient_accumulation_steps), group
            )
        return {**self._buffered_inputs[self._step % parts], **self._minibatch_totals()}

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.judge(model, norm, self.accelerator)
        return norm

    def _minibatch_totals(self) -> dict[str, Tensor]:
        """Tokens and responses of this optimizer step: all its micro-batches, all processes.

        Where a step accumulates over several rollout batches, those to come are taken to be like this one.
        """
        accumulation, in_batch = self.current_gradient_accumulation_steps, self.args.steps_per_generation
        width = min(accumulation, in_batch)
        if self._totals_of is not self._buffered_inputs:  # one collective a rollout batch
            self._totals_of, counts = self._buffered_inputs, count_rows(self._buffered_inputs)
            self._totals = self.accelerator.reduce(counts, reduction="sum")
        first = self._step % in_batch // width * width
        totals = self._totals[first : first + width].sum(dim=0) * (accumulation / width)
        return {"minibatch_num_tokens": totals[0], "minibatch_num_sequences": totals[1]}

    # -- logging and checkpoints ---------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        figures = self.objective_stats[mode].flush(self.accelerator)
        if mode == "train":
            account = self.rollout_account.over_processes(self.accelerator)
            figures |= {
                **self.diagnostics.figures(),
                **tool_figures(account),
                "skipped_updates": self.guard.flush(),
                **self.behaviour.figures(),
            }
        self._metrics[mode].update({LOGGER_NAMES.get(name, name): [value] for name, value in figures.items()})
        super().log(logs, start_time)

    def tell_loggers(self, figures: dict[str, float]) -> None:
        """Hand figures that are not the trainer's own to whatever `report_to` names, at this step."""
        self.callback_handler.on_log(self.args, self.state, self.control, figures)

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must be of for this trainer to go on from it."""
        return {**self.run_identity, "world_size": self.args.world_size, "model": self._model_facts}

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        refuse_nonfinite_weights(self)
        with staged(self) as folder:
            save_rollout_buffer(self, folder)
            for write in self.checkpoint_writers if self.is_world_process_zero() else ():
                write(folder)
            self._staging = folder.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_rollout_buffer(self, checkpoint)
