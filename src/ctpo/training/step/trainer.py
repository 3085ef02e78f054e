"""`CTPOTrainer`: TRL's `GRPOTrainer` with another policy loss.

`SEAMS` lists the methods of TRL that are overridden. Everything else is TRL's: data, generation, rewards,
group-relative advantages, optimizer, distribution and logging.
"""

from __future__ import annotations

import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.grpo_trainer import EnvironmentFactory, RewardFunc, RolloutFunc

from ctpo import fast_cpu
from ctpo.runs.atomic import write_text
from ctpo.runs.identity import describe_model
from ctpo.tasks import Task, get_task, reward_function
from ctpo.training.config.config import CTPOConfig
from ctpo.training.credit.credit import Credit
from ctpo.training.diagnostics.samples import response_rewards
from ctpo.training.diagnostics.watch import Diagnostics
from ctpo.training.records.card import CARD, model_card
from ctpo.training.records.environment import describe_environment
from ctpo.training.records.recorder import RunRecorder
from ctpo.training.records.script import recorded, settings_and_records
from ctpo.training.records.window import Window
from ctpo.training.sampling.account import RolloutAccount, tool_figures
from ctpo.training.sampling.checked import CheckedRewards
from ctpo.training.sampling.correction import corrected, correction_for
from ctpo.training.sampling.data import check_enough
from ctpo.training.sampling.groups import group_sampler
from ctpo.training.sampling.own import heldout_data, own_rollouts, training_data
from ctpo.training.sampling.prompts import leave_out_long_prompts
from ctpo.training.scoring.microbatch import MULTIMODAL, MicroBatch
from ctpo.training.scoring.parts import PartScorer, learns_from_entropy
from ctpo.training.scoring.stats import StatsAccumulator
from ctpo.training.step.behaviour import Behaviour
from ctpo.training.step.checkpoints import Checkpoints
from ctpo.training.step.denominators import Denominators
from ctpo.training.step.guards import UpdateGuard, refuse_nonfinite_weights
from ctpo.training.step.loggers import keep_from_consoles, logged_name, rename_groups, send_curves
from ctpo.training.step.minibatches import deal
from ctpo.training.step.policy_loss import NO_ROLLOUT_LOGPS, PolicyLoss
from ctpo.training.step.resume import restore, rollout_state
from ctpo.training.step.state import check_optimizer, load_state, save_state, skip_epochs
from ctpo.training.step.warnings import warn_if_inert, warn_without_critic

if TYPE_CHECKING:  # an optional dependency, like TRL's own import of it
    from peft import PeftConfig, PeftModel

SEAMS: Final[dict[str, tuple[str, ...]]] = {
    "_compute_loss": ("self", "model", "inputs"),
    "_prepare_inputs": ("self", "generation_batch"),
    "_generate_and_score_completions": ("self", "inputs"),
    "_generate": ("self", "prompts"),
    "_calculate_rewards": ("self", "inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": (
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
        *("compute_aux_loss", *MULTIMODAL),
    ),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "_get_train_sampler": ("self", "dataset"),
    "train": ("self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "log": ("self", "logs", "start_time"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_get_output_dir": ("self", "trial"),
    "create_model_card": ("self", "model_name", "dataset_name", "tags"),
    "_issue_warnings_after_load": ("self", "load_result"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_load_rng_state": ("self", "checkpoint"),
}
"""The methods of GRPOTrainer that are overridden here, each with its parameters in TRL 1.16.

A test compares them with the installed TRL. So an upgrade that changes one of them fails there and not in a run.
"""


def _not_ours(args: object) -> str:
    """The error of arguments that are no CTPOConfig."""
    made = "; CTPOConfig.from_grpo(args) makes one of it" if isinstance(args, GRPOConfig) else ""
    return f"args is a {type(args).__name__}; CTPOTrainer takes a CTPOConfig{made}"


class CTPOTrainer(Checkpoints, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer, trained with an objective of `ctpo.objectives`.

    The arguments are GRPOTrainer's, except that `args` is a [`CTPOConfig`], that `tools` also takes our tools, and that
    there is `task`. TRL samples as in GRPOTrainer. Our engine samples instead, in process or with `use_vllm` in TRL's
    vLLM, and reports exact log-probs, where one of these asks for it:

    - `tools` holds a `ctpo.tasks.PythonTool`, whose programs run in the sandbox, or a `FunctionTool`. Plain functions
      beside it are called by our engine too. The sandbox is opened with the first rollout and closed after `train`.
    - `task` is a `ctpo.tasks.Task`, or the name of one. It brings its training problems as `train_dataset`, its judge
      as `reward_funcs`, 128 held-out problems as `eval_dataset` if an evaluation is set, and its tools, environment
      and conversation as the rollouts. An argument that is given comes before the task's.
    - `anchor="rollout"`, which needs the log-probs.

    In a conversation, reward functions then get one assistant message with the whole text of the response, tool calls
    and outputs included.

    The loss of one optimizer step is the objective reduced over the whole minibatch. Its denominators count the tokens
    and responses of all micro-batches on all processes. Tokens that a tool wrote (`tool_mask` 0) are left out: they
    enter neither ratios, nor positions, nor the loss, nor its denominators.

    Raises:
        ValueError: if `args` is not a CTPOConfig, if arguments exclude each other, or if `anchor="rollout"` and nothing
            reports log-probs.

    Example:
        ```python
        trainer = CTPOTrainer(
            model="Qwen/Qwen3-0.6B",
            reward_funcs=reward,
            args=CTPOConfig("output", steps_per_generation=16),
            train_dataset=dataset,
        )
        trainer.train()

        # The model may run Python programs, in the sandbox, and call a function.
        CTPOTrainer(model, reward, args, dataset, tools=[CHAT_TOOL, look_up])
        # Problems, judge and tool of a shipped task.
        CTPOTrainer(model, args=CTPOConfig("output", anchor="rollout"), task="gsm8k")
        ```
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
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc] | None = None,
        args: CTPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: (
            Dataset
            | IterableDataset
            | DatasetDict
            | IterableDatasetDict
            | dict[str, Dataset | IterableDataset]
            | None
        ) = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (
            None,
            None,
        ),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: list[Callable[..., Any]] | None = None,
        rollout_func: RolloutFunc | None = None,
        environment_factory: EnvironmentFactory | dict[str, EnvironmentFactory] | None = None,
        *,
        task: Task | str | None = None,
    ) -> None:
        if args is None:
            args = CTPOConfig("ctpo-output")
        if not isinstance(args, CTPOConfig):
            raise ValueError(_not_ours(args))
        if not isinstance(task, Task | str | None):
            raise ValueError(f"task={task!r} is no ctpo.tasks.Task, nor the name of one")
        self.task = get_task(task) if isinstance(task, str) else task
        """What the script trains on, if it is a task."""
        own = own_rollouts(
            args, self.task, tools, rollout_func=rollout_func, environments=environment_factory
        )
        if own is not None:
            rollout_func, tools = own, None
        self.own_rollouts = own
        if self.task is not None:
            if reward_funcs is None:
                reward_funcs = reward_function(self.task)
            if train_dataset is None:
                train_dataset = training_data(self.task, args.seed)
            if eval_dataset is None and args.eval_strategy != "no":
                eval_dataset = heldout_data(self.task)
        if args.anchor == "rollout" and not args.use_vllm and rollout_func is None:
            raise ValueError(NO_ROLLOUT_LOGPS)
        self.objective = args.build_objective()
        self.rollout_correction = correction_for(args, rollout_func)
        self.objective_stats = {"train": StatsAccumulator(), "eval": StatsAccumulator()}
        self.rollout_account = RolloutAccount()
        self.guard = UpdateGuard(args.max_nonfinite_updates)
        self.run_identity: dict[str, Any] = {}
        """What its checkpoints say about the run. `ctpo train` puts its recipe here."""
        self.window = Window()
        """What the next record needs."""
        self.recorder: RunRecorder | None = None
        """What writes records of this training."""
        warn_if_inert(args)
        warn_without_critic(args)
        if args.keep_freed_memory and args.device.type == "cpu":
            fast_cpu.keep_freed_memory()
        with warnings.catch_warnings():
            if own is not None:  # the script gave no rollout_func, so TRL's warning of it would puzzle
                warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model,
                reward_funcs,
                args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                tools=tools,
                rollout_func=rollout_func,
                environment_factory=environment_factory,
            )
        if own is not None and self._is_vlm:
            raise ValueError(
                "our engine samples text only, and processing_class is of a model that sees images"
            )
        if args.max_prompt_length is not None:
            encode = None if own is None else own.encode
            self.train_dataset = leave_out_long_prompts(self, args.max_prompt_length, encode)
        # TRL's own correction is replaced. Where vLLM's is on, TRL scores the rollout batch for it.
        self.vllm_importance_sampling_correction = self.use_vllm and self.rollout_correction is not None
        self._checked_rewards = CheckedRewards(self.reward_funcs, self.reward_func_names)
        self.reward_funcs: list[Any] = self._checked_rewards.functions
        self.groups = group_sampler(self)
        self.rollout_rows: list[dict[str, Any]] = []
        self.part_scorer = PartScorer(self)
        self.diagnostics = Diagnostics(self)
        self.model_facts = describe_model(self.model)
        self.behaviour = Behaviour(self, args.behaviour_lag)
        self.credit = Credit(self, self.part_scorer, self._score_rollouts)
        self.critic = self.credit.critic
        self.denominators = Denominators(self)
        self.policy_loss = PolicyLoss(self)

    # -- the loss ------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        return self.policy_loss(model, MicroBatch.of(inputs))

    @property
    def batch_steps(self) -> int:
        """Micro-batches trained on per rollout batch, counting every pass over it."""
        return int(self.args.steps_per_generation * self.num_iterations)

    @property
    def at_batch_end(self) -> bool:
        """Whether no micro-batch of the rollout batch is left to train on."""
        return bool(self._step % self.batch_steps == 0)

    @property
    def policy_lag(self) -> int:
        """Rollout batches between the weights that sampled the rollout batch and those that first learned from it."""
        return self.behaviour.age

    @property
    def responses_before(self) -> int:
        """Responses that earlier rounds of this rollout batch sampled, over all processes."""
        return 0 if self.groups is None else self.groups.responses

    # -- what TRL hands over -------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        return (
            (None, None, None) if self._anchor_pass_is_idle() else self._score_padded(model, *args, **kwargs)
        )

    def _score_padded(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        """What TRL's own method returns, by a faster pass where there is one."""
        scored = self.part_scorer.score_padded(model, *args, **kwargs)
        if scored is not None:
            return scored
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _anchor_pass_is_idle(self) -> bool:
        """Whether TRL is recomputing old log-probs that nobody will read, because `anchor="rollout"`.

        TRL scores without gradient for three purposes: these, the reference model, and the correction of vLLM's
        log-probs.
        """
        return (
            self.args.anchor == "rollout"
            and self.model.training
            and not torch.is_grad_enabled()
            and self.beta == 0.0
            and self.rollout_correction is None
        )

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if not self.model.training:
            evaluated: dict[str, Any] = super()._prepare_inputs(generation_batch)
            if self.args.denominators != "minibatch":
                rows = torch.tensor(len(evaluated["completion_ids"]), device=self.accelerator.device)
                evaluated["minibatch_num_sequences"] = rows
            return evaluated
        parts = self.args.steps_per_generation
        if self.at_batch_end or self._buffered_inputs is None:
            self.diagnostics.close()
            with self.behaviour.sampling():
                rollouts = self._generate_and_score_completions(generation_batch)
            figures = self.credit.learn(rollouts)  # with the weights that learn
            self.objective_stats["train"].add(figures)
            self.window.add(figures)
            rewards = response_rewards(self, rollouts["advantages"]) if self.args.diagnostics else None
            if rewards is not None:
                rollouts["rewards"] = rewards
            null_sizes = self.diagnostics.null_sizes(rollouts["advantages"])
            if null_sizes is not None:
                rollouts["null_sizes"] = null_sizes
            self.diagnostics.generated(MicroBatch.of(rollouts))
            group = self.num_generations if self.args.whole_groups else 1
            self._buffered_inputs: list[dict[str, Any]] = deal(
                rollouts, parts, max(1, parts // self.args.gradient_accumulation_steps), group
            )
        totals = self.denominators.of(self._buffered_inputs, self._step)
        return {**self._buffered_inputs[self._step % parts], **totals}

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        known = self.groups.rewards() if self.groups is not None and self.model.training else None
        if known is not None:
            self.credit.rewards = known
            return known
        rewards = self._checked_rewards.usable(
            super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        )
        self.credit.take_rewards(rewards, self._checked_rewards, inputs, completion_ids_list)
        return rewards

    def _generate(self, prompts: list[Any]) -> Any:
        if self.groups is None or not self.model.training:
            return self._sampled(prompts)
        self.rollout_rows = self.groups.inputs
        return self.groups.generate(prompts, self._sampled, self._calculate_rewards)

    def _sampled(self, prompts: list[Any]) -> Any:
        """What TRL's own method returns, with an account of what it cost where nothing else gives one."""
        before, self.rollout_account = self.rollout_account, RolloutAccount()
        started = time.perf_counter()
        generated = super()._generate(prompts)
        if not self.rollout_account.responses:  # TRL sampled, or a rollout function that is not ours
            seconds = time.perf_counter() - started
            self.rollout_account = RolloutAccount(responses=len(prompts), seconds=seconds)
        if not self.model.training:
            self.rollout_account = before  # the records are of training
        return generated

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        if self.groups is not None and self.model.training:
            inputs = self.groups.fill(super()._generate_and_score_completions)
        self.rollout_rows = inputs  # TRL hands a rollout function the prompts alone
        self.credit.starting()
        rollouts, stats = corrected(
            super()._generate_and_score_completions(inputs),
            self.rollout_correction,
            self._score_rollouts,
            required=self.args.rollout_correction != "auto",
        )
        mode = "train" if self.model.training else "eval"
        self.objective_stats[mode].add(stats)
        if mode == "train":
            self.window.add(stats)
            if not self.rollout_account.model_tokens:
                self.rollout_account.model_tokens = int(MicroBatch.of(rollouts).response_mask.sum())
        self.credit.give(inputs, rollouts)
        return rollouts

    def _score_rollouts(self, rollouts: dict[str, Any]) -> Tensor:
        """The log-probs [B, T] of a rollout batch under the model in training, for the rollout correction."""
        batch = MicroBatch.of(rollouts)
        with torch.no_grad():
            logps: Tensor = self._score_padded(
                self.model,
                torch.cat([batch.prompt_ids, batch.completion_ids], dim=1),
                torch.cat([batch.prompt_mask, batch.completion_mask], dim=1),
                batch.completion_ids.size(1),
                batch_size=self.args.per_device_train_batch_size,
                **batch.multimodal,
            )[0]
        return logps

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        taken = self.guard.judge(model, norm, self.accelerator)
        if taken and self.critic is not None and self.critic.holds_policy:
            for parameter in model.parameters():
                parameter.grad = None  # so that the optimizer leaves its weight alone
        self.window.updated(norm, self._get_learning_rate())
        self.diagnostics.updated(norm)
        return norm

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, and write the records of `ctpo train` into `output_dir`, unless `records` is off.

        Args:
            resume_from_checkpoint: a checkpoint; True for the last good one in `output_dir`. Records then go on from
                there. If it is not given, and the environment variable `CTPO_RESUME` names this directory or a
                checkpoint in it, training continues from that.
            trial: of a search over hyperparameters by transformers, which writes no records.
            ignore_keys_for_eval: see transformers' Trainer.

        Raises:
            UserError: if the training data does not fill one rollout batch, or the checkpoint or the records cannot be
                continued.
        """
        if hasattr(self.train_dataset, "__len__"):
            check_enough(self.train_dataset, self.args)
        if not self.args.records or self.recorder is not None or trial is not None:
            return self._train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        with recorded(self, resume_from_checkpoint) as checkpoint:
            return self._train(checkpoint, trial, ignore_keys_for_eval)

    def _train(self, *args: Any) -> Any:
        """TRL's `train`; afterwards the sandbox is closed."""
        try:
            return super().train(*args)
        finally:
            if self.own_rollouts is not None:
                self.own_rollouts.close()

    # -- logging and checkpoints ---------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        figures = self.objective_stats[mode].flush(self.accelerator)
        if mode == "train":
            self.window.take(self._metrics[mode], cleared=True)
            account = self.rollout_account.over_processes(self.accelerator)
            figures |= {
                **self.diagnostics.figures(),
                **tool_figures(account),
                "skipped_updates": self.guard.flush(),
                **self.behaviour.figures(),
            }
            rename_groups(self._metrics[mode])
        line = self.diagnostics.line if mode == "train" else None
        if learns_from_entropy(self) and "minibatch_loss" in figures:
            self._metrics[mode]["policy_loss"] = [figures["minibatch_loss"]]
        self._metrics[mode].update({logged_name(name): [value] for name, value in figures.items()})
        callbacks = self.callback_handler.callbacks
        keep_from_consoles(callbacks)
        super().log(logs, start_time)
        if line is not None and self.is_world_process_zero():
            send_curves(line, self.state.global_step, self.args.report_to, callbacks)

    def record_figures(self) -> dict[str, Any]:
        """The figures since the last call, under the names that records use. Every process must call."""
        figures = self.window.close(self._metrics["train"], self.guard.total, self.accelerator)
        measured = {
            name: value for name, value in self.diagnostics.figures("record").items() if "/" not in name
        }
        if self.critic is not None and self.diagnostics.line is not None:
            self.diagnostics.line |= self.critic.curves
        return {**figures, **measured, **self.behaviour.figures()}

    def tell_loggers(self, figures: dict[str, float]) -> None:
        """Pass figures that are not the trainer's own to the loggers in `report_to`, at this step."""
        due = self.control.should_log  # transformers takes this call for the log of the step
        self.callback_handler.on_log(self.args, self.state, self.control, figures)
        self.control.should_log = due

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        """Write `README.md`: what was trained, how, with what result so far, and how to repeat it.

        Args:
            model_name: None for the name of the folder.
            dataset_name: a dataset of the hub.
            tags: of the hub, beside TRL's.
            folder: where to; None for `output_dir`.
        """
        if self.is_world_process_zero():
            place = Path(folder or self.args.output_dir)
            recipe, records = settings_and_records(self)
            card = model_card(
                self.args,
                recipe,
                records,
                describe_environment(self.args.world_size),
                name=model_name or place.resolve().name,
                parameters=int(self.model_facts["parameters"]),
                tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
                dataset=dataset_name,
            )
            write_text(place / CARD, card)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        refuse_nonfinite_weights(self)
        super()._save_checkpoint(model, trial)

    def add_to_checkpoint(self, folder: Path) -> None:
        """Write the rollout batch, all that was gathered in it, and the critic."""
        if self.recorder is not None:
            self.recorder.before_checkpoint(folder)
        save_state(rollout_state(self), folder, self.args.process_index)
        if self.critic is not None:
            self.critic.save(folder)

    def continue_from(self, checkpoint: Path) -> None:
        """Go on in the middle of the rollout batch, as `add_to_checkpoint` left it."""
        check_optimizer(self.optimizer)
        skip_epochs(self._train_sampler, int(self.state.epoch or 0))
        rank, processes = self.args.process_index, self.args.world_size
        state = load_state(checkpoint, rank, processes, self.accelerator.device)
        if self.critic is not None:
            self.critic.load(checkpoint)
        if state is not None:
            restore(self, state)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(load_result)
        if (
            load_result.unexpected_keys
        ):  # transformers only warns, and trains on with the weights it started from
            raise ValueError(f"the model has no weight {load_result.unexpected_keys[0]!r}")
