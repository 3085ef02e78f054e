"""`CTPOConfig`: TRL's `GRPOConfig` with an objective chosen by name."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from trl import GRPOConfig

from ctpo.objectives import (
    Objective,
    RolloutCorrection,
    named_correction,
    preset,
    preset_defaults,
    preset_names,
)
from ctpo.objectives.named_corrections import as_in_trl
from ctpo.old_names import current_knobs
from ctpo.training.config.checks import changed_vllm_correction, check_batches, check_settings
from ctpo.training.config.from_trl import (
    DEFAULT_OBJECTIVE,
    LOSS_SETTINGS,
    LossSettingsNotice,
    given_loss_settings,
    translate,
)
from ctpo.training.config.launch import DDP_TIMEOUT
from ctpo.training.config.older import OLDER_KEYS, OlderKeys, switch
from ctpo.training.processes import join

_READ_AS_OBJECTIVE = (
    "A setting of TRL's loss. It becomes the objective with that loss (docs/start/porting.md)."
)
_DERIVED = ("steps_per_generation", "generation_batch_size", "bf16")
"""Settings that a finished GRPOConfig has always set, whether a script gave them or not."""


@dataclass
class CTPOConfig(OlderKeys, GRPOConfig):  # type: ignore[misc]
    """The settings of `CTPOTrainer`: every field of `trl.GRPOConfig`, and the fields below.

    Settings of TRL's own loss (`loss_type`, `epsilon`, …) become the objective with the same loss, and a warning says
    which (docs/start/porting.md). They are None afterwards. With neither them nor `objective`, CTPO is trained.

    Three defaults differ from GRPOConfig's. `activation_checkpointing` is off, because it recomputes every activation;
    `max_tokens_per_micro_batch` bounds the memory without that. `bf16` is off on a CPU if it is not set;
    `compute_dtype` decides there. `ddp_timeout` is 600 seconds and not 1800, and it holds on CPUs too.

    Raises:
        ValueError: if a preset or one of its knobs is unknown, if a value is out of range, if an objective and settings
            of TRL's loss are both given, or if no objective has the loss that those describe.

    Example:
        config = CTPOConfig("out", objective="ctpo", objective_kwargs={"log_high": 0.1}, use_cpu=True)
        config.objective  # "ctpo"
    """

    objective: str | None = field(
        default=None,
        metadata={
            "help": "Name of a preset of `ctpo.objectives`. A preset sets the ratio, the trust region, the surrogate "
            "and the reduction of the loss. If not set, it is what TRL's `loss_type`, `epsilon` and the like describe, "
            "and `ctpo` if they are not set either."
        },
    )
    objective_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Knobs of the preset to change, for example '{\"log_high\": 0.1}'."},
    )
    anchor: str = field(
        default="old",
        metadata={
            "help": "Where the log-probs in the denominator of the importance ratio come from. `old`: the trainer "
            "computes them before the first update on a rollout batch. `rollout`: the rollout engine reports them. "
            "That saves one forward pass. It is exact if the engine runs the same weights in the same precision."
        },
    )
    rollout_correction: str = field(
        default="auto",
        metadata={
            "help": "How the difference between the rollout engine's log-probs and the trainer's is corrected: the "
            "name of a correction of `ctpo.objectives` (docs/how-to/rollout_correction.md), `none`, or `auto`. `auto` "
            "is `recipe` where another engine samples and anchor='old', and `none` elsewhere. With vLLM it is what "
            "TRL's `vllm_importance_sampling_*` say, if they are set."
        },
    )
    rollout_correction_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Knobs of the correction to change, for example \'{"cap": 2.0, "veto": 1e-4}\'.'},
    )
    advantages: str = field(
        default="trl",
        metadata={
            "help": "How rewards become advantages: `trl` (as `scale_rewards` and `multi_objective_aggregation` say), "
            "`turns` (one per turn, from the rewards that an environment gives to turns, later ones included), "
            "`each-turn` (the same without later rewards), `rloo`, `maxrl`, `opo`, `batch`, "
            "`reinforce++` or `reinforce++-baseline` (docs/reference/training.md), `gae` (of a critic, "
            "docs/how-to/critic.md)."
        },
    )
    critic: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Knobs of the critic of advantages='gae' to change, for example '{\"epochs\": 2}' "
            "(docs/how-to/critic.md)."
        },
    )
    dynamic_sampling_rounds: int = field(
        default=0,
        metadata={
            "help": "How often the groups of a rollout batch whose rewards are all equal are replaced by groups of "
            "further prompts, at most. 0 keeps them (docs/reference/training.md)."
        },
    )
    oversampling: float = field(
        default=1.0,
        metadata={
            "help": "Groups sampled for each group that is needed, 1 or more. The groups whose rewards have the "
            "largest standard deviation are kept."
        },
    )
    curriculum: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Shares of easy, normal and hard problems among those drawn, for example \'{"easy": 0.1, '
            '"normal": 0.8, "hard": 0.1}\'. Running estimates of the problems\' rewards put them there: easy from '
            "`easy_from` (0.8) on, hard up to `hard_to` (0.2). Unset for all problems in turn."
        },
    )
    group_metric: str | None = field(
        default=None,
        metadata={
            "help": "The reward function by which a group has spread and a problem is easy or hard; unset for the "
            "weighted sum of all."
        },
    )
    denominators: str = field(
        default="minibatch",
        metadata={
            "help": "What the means of the loss divide by: `minibatch`, the tokens and responses of the optimizer step "
            "that count in the loss, over all processes; `rollout-batch`, the rollout batch's tokens per optimizer "
            "step, as TRL does; `micro-batch`, the tokens of each micro-batch, as TRL's `bnpo`. The last two count "
            "responses without tokens too."
        },
    )
    behaviour_lag: int = field(
        default=0,
        metadata={
            "help": "Age of the weights that sample, in rollout batches, as in asynchronous training. 0 samples with "
            "the current weights. A lag needs anchor='rollout'. It keeps lag + 1 copies of the trained weights in "
            "memory and lag copies in each checkpoint."
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            **switch("gradient_checkpointing"),
            "help": "The name of activation_checkpointing in older versions of transformers: recompute activations in "
            "the backward pass, which saves memory and costs time. Off if neither is set. If on, pack_rows has no "
            "effect.",
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Training prompts of more tokens are left out. (TRL up to 0.27 cut them.)"},
    )
    scale_rewards: str = field(
        default="group",
        metadata={
            **switch("scale_rewards"),
            "help": "What the advantages of `trl` and `turns` divide by: `group`, the standard deviation of a group's "
            "rewards; `batch`, that of all rewards; `none`, nothing. TRL up to 0.21 had True and False here, which "
            "mean `group` and `none`.",
        },
    )
    loss_type: str | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    importance_sampling_level: str | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    epsilon: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    epsilon_high: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    delta: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    sapo_temperature_neg: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    sapo_temperature_pos: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    vespo_k_pos: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    vespo_lambda_pos: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    vespo_k_neg: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})
    vespo_lambda_neg: float | None = field(default=None, metadata={"help": _READ_AS_OBJECTIVE})

    pack_rows: bool = field(
        default=True,
        metadata={
            "help": "Run the responses of a micro-batch through the model as one sequence without padding, where the "
            "model allows it."
        },
    )
    share_prompts: bool = field(
        default=True,
        metadata={
            "help": "Run each prompt through the model once for all of its responses in a micro-batch. Needs pack_rows."
        },
    )
    whole_groups: bool = field(
        default=True,
        metadata={
            "help": "Keep all responses to one prompt in the same minibatch, if they fit. If off, they are spread "
            "over the minibatches: each then holds as many prompts as possible, and share_prompts saves little."
        },
    )
    completion_head: bool = field(
        default=True,
        metadata={
            "help": "Compute logits only for the tokens that the model sampled, a chunk of tokens at a time. If off, "
            "pack_rows is off too."
        },
    )
    fused_layers: bool = field(
        default=True,
        metadata={
            "help": "On a CPU, compute each normalisation layer in one step. In bfloat16, also compute attention over "
            "short prompts and responses as full matrix products. The results differ by rounding only."
        },
    )
    skip_zero_advantage: bool = field(
        default=True,
        metadata={
            "help": "Skip responses whose advantage is 0 in the forward and backward pass. They still count in the "
            "denominators of the loss; the objective's statistics leave them out. No effect with beta, or with an "
            "objective whose limits depend on all responses or that pulls to the anchor."
        },
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Largest number of tokens that go through the model at once. A larger micro-batch is split, which "
            "changes only memory and rounding. If not set, activations take at most about three times the memory of "
            "the weights. 0 means no limit."
        },
    )
    compute_dtype: str = field(
        default="auto",
        metadata={
            "help": "Number format of matrix products on a CPU, in training and in sampling: `float32`, `bfloat16` or "
            "`auto`. `auto` is bfloat16 if that was measured to be faster and anchor is not `rollout`. Weights and "
            "optimizer states keep their own format."
        },
    )
    keep_freed_memory: bool = field(
        default=True,
        metadata={
            "help": "On a CPU, keep memory that tensors free in the process (glibc's mallopt). The system would "
            "otherwise clear it each time it is handed out again, which takes time."
        },
    )
    max_nonfinite_updates: int = field(
        default=3,
        metadata={
            "help": "Number of updates in a row that may be skipped because a loss, gradient or log-prob is not "
            "finite. When it is reached, the run ends with a diagnosis."
        },
    )

    ddp_timeout: int = field(
        default=DDP_TIMEOUT,
        metadata={
            "help": "Seconds that one process of a run waits for another before it ends the run "
            "(docs/how-to/several-processes.md)."
        },
    )
    records: bool = field(
        default=True,
        metadata={
            "help": "Write the records of `ctpo train` into output_dir, for `ctpo report`, `ctpo calibrate` and "
            "`ctpo train --resume` (docs/reference/training.md)."
        },
    )
    diagnostics: bool = field(
        default=True,
        metadata={
            "help": "Record the share of clipped tokens, the spread of the log ratio and the gradient that clipping "
            "removes, by position in the response, and the difference to the rollout engine's log-probs "
            "(docs/reference/diagnostics.md)."
        },
    )
    calibrate_online: bool = field(
        default=False,
        metadata={
            "help": "Fit the trust region again after each rollout batch, so that it clips `share` of the tokens at "
            "every position. Only for objective='ctpo-calibrated'. The first rollout batch uses the given scale, "
            "power and centre."
        },
    )

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *GRPOConfig._VALID_DICT_FIELDS,
        *("objective_kwargs", "rollout_correction_kwargs", "curriculum", "critic"),
    ]

    def __post_init__(self) -> None:
        self._read_trls_settings()
        # A command line gives the words of what was once a boolean.
        self.scale_rewards = {"true": "group", "false": "none"}.get(
            str(self.scale_rewards).lower(), self.scale_rewards
        )
        if _will_run_on_cpu(self):
            self.bf16: bool | None = bool(self.bf16)
        check_batches(self)
        if getattr(self, "ddp_find_unused_parameters", None) is None:
            self.ddp_find_unused_parameters = False  # every weight takes part in every loss
        join(self)
        super().__post_init__()
        # Newer versions of transformers do this themselves.
        self.gradient_checkpointing = bool(self.gradient_checkpointing)
        if isinstance(self.objective_kwargs, dict) and self.objective in preset_names():
            self.objective_kwargs = current_knobs(self.objective_kwargs, preset_defaults(self.objective))
        check_settings(self, _trl_defaults())
        self.build_objective()
        self.build_correction()

    @classmethod
    def from_grpo(cls, config: GRPOConfig, objective: str | None = None, **settings: Any) -> CTPOConfig:
        """The configuration that trains as `config` does, or with another objective.

        Only what differs from GRPOConfig's defaults counts as given: the rest has the defaults of `CTPOConfig`.

        Args:
            config: a `trl.GRPOConfig`.
            objective: a preset. The settings of TRL's loss are dropped then, and a warning names them. If None, they
                become the objective with the same loss, and CTPO if all are at their defaults.
            settings: more settings of `CTPOConfig`, which replace those of `config`.

        Raises:
            ValueError: as the class does, or if `config` is no GRPOConfig.

        Example:
            `CTPOTrainer(model, reward, CTPOConfig.from_grpo(GRPOConfig("out", loss_type="grpo"), "ctpo"))`
        """
        if not isinstance(config, GRPOConfig) or isinstance(config, CTPOConfig):
            raise ValueError(
                f"config is a {type(config).__name__}; CTPOConfig.from_grpo takes a trl.GRPOConfig"
            )
        given = {**_given(config), **settings}
        if "steps_per_generation" in settings and "generation_batch_size" not in settings:
            given.pop("generation_batch_size", None)  # TRL takes one of the two
        if objective is not None or settings.get("objective_kwargs"):
            dropped = {name: given.pop(name) for name in given_loss_settings(given)}
            if dropped:
                named = ", ".join(f"{name}={value!r}" for name, value in dropped.items())
                name = objective or DEFAULT_OBJECTIVE
                warnings.warn(
                    f"objective={name!r} takes the place of {named} of GRPOConfig",
                    LossSettingsNotice,
                    stacklevel=2,
                )
        return cls(objective=objective, **given)

    def _read_trls_settings(self) -> None:
        """Put our settings in the place of older keys and of settings of TRL's loss, and say so."""
        values = {each.name: getattr(self, each.name, None) for each in dataclasses.fields(self) if each.init}
        translation = translate(values, _trl_defaults())
        for name, value in {**dict.fromkeys((*OLDER_KEYS, *LOSS_SETTINGS)), **translation.settings}.items():
            setattr(self, name, value)
        if self.objective is None:
            self.objective = DEFAULT_OBJECTIVE
        translation.tell(4)

    def objective_settings(self) -> dict[str, Any]:
        """All knobs of the objective by name, with defaults for those that are not set."""
        overrides = self.objective_kwargs or {}
        assert isinstance(overrides, dict)
        assert self.objective is not None  # __post_init__ sets it
        return {**preset_defaults(self.objective), **overrides}

    def build_objective(self, **knobs: Any) -> Objective:
        """The objective that these settings describe.

        Args:
            knobs: knobs to change, on top of `objective_kwargs`.

        Raises:
            ValueError: if the preset or a knob is unknown, or a value is out of range.
        """
        overrides = self.objective_kwargs or {}
        assert isinstance(overrides, dict)  # TRL parses a JSON string in its own __post_init__
        assert self.objective is not None  # __post_init__ sets it
        return preset(self.objective, **{**overrides, **knobs})

    def build_correction(self, *, other_engine: bool | None = None) -> RolloutCorrection | None:
        """The rollout correction that these settings describe; None if there is none.

        Args:
            other_engine: whether something else than the model in training samples; None if only vLLM does.

        Raises:
            ValueError: if the correction or a knob is unknown, or a value is out of range.
        """
        knobs = self.rollout_correction_kwargs or {}
        assert isinstance(knobs, dict)
        if self.rollout_correction == "none":
            return None
        if self.rollout_correction != "auto":
            return named_correction(self.rollout_correction, **knobs)
        if self.anchor != "old":
            return None
        if not self.use_vllm:
            return named_correction("recipe", **knobs) if other_engine else None
        if not self.vllm_importance_sampling_correction:
            return None
        if not changed_vllm_correction(self, _trl_defaults()):
            return named_correction("recipe", **knobs)
        return as_in_trl(
            self.vllm_importance_sampling_mode,
            self.vllm_importance_sampling_clip_min,
            self.vllm_importance_sampling_clip_max,
        )

    @property
    def updates_per_rollout_batch(self) -> int:
        """The number of optimizer steps taken on one rollout batch."""
        updates: int = self.steps_per_generation * self.num_iterations // self.gradient_accumulation_steps
        return max(1, updates)


def _given(config: GRPOConfig) -> dict[str, Any]:
    """The settings of a finished GRPOConfig that differ from the defaults that it has on this machine."""
    with warnings.catch_warnings():  # about GRPOConfig's own defaults
        warnings.simplefilter("ignore", FutureWarning)
        plain = GRPOConfig(config.output_dir, use_cpu=config.use_cpu)
    names = [each.name for each in dataclasses.fields(GRPOConfig) if each.init and each.name not in _DERIVED]
    given = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}
    if config.bf16 == config.fp16:  # neither what TRL sets by itself
        given["bf16"] = config.bf16
    of_one_step = config.per_device_train_batch_size * config.world_size * config.gradient_accumulation_steps
    if config.generation_batch_size != of_one_step:
        given["generation_batch_size"] = config.generation_batch_size
    return {"output_dir": config.output_dir, **given}


def _trl_defaults() -> dict[str, Any]:
    return {each.name: each.default for each in dataclasses.fields(GRPOConfig)}


def _will_run_on_cpu(config: CTPOConfig) -> bool:
    return bool(config.use_cpu) or not torch.accelerator.is_available()
