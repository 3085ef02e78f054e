"""`CTPOConfig`: TRL's `GRPOConfig` with the objective chosen by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import GRPOConfig

from ctpo.cpu.precision import COMPUTE_DTYPES
from ctpo.objectives import Objective, preset, preset_defaults
from ctpo.training.config.checks import check_batches
from ctpo.training.step.behaviour import check_lag

ANCHORS = ("old", "rollout")

# Settings of GRPOConfig that shape TRL's own loss. The objective takes their place, so a value other than
# TRL's default would be ignored without a word; each names what to set instead.
_REPLACED = {
    "loss_type": "objective and objective_kwargs.reduction",
    "importance_sampling_level": "objective",
    "epsilon": "objective_kwargs.low",
    "epsilon_high": "objective_kwargs.high",
    "delta": "objective_kwargs.dual",
    "off_policy_mask_threshold": "objective",
}
_UNSUPPORTED = {
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
}


@dataclass
class CTPOConfig(GRPOConfig):  # type: ignore[misc]
    """Settings of [`CTPOTrainer`]: every field of `trl.GRPOConfig`, and those below.

    Where the defaults differ from GRPOConfig's: `gradient_checkpointing` is off (it recomputes every activation;
    `max_tokens_per_micro_batch` bounds memory without), and `bf16`, when left unset, is off on a CPU, where
    `compute_dtype` decides.

    Raises:
        ValueError: for an unknown preset or override, or a TRL loss setting that the objective replaces.
    """

    objective: str = field(
        default="ctpo",
        metadata={"help": "Preset of `ctpo.objectives`: which ratio, trust region, surrogate and reduction."},
    )
    objective_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Overrides of the preset's settings, e.g. '{\"high\": 0.1}'; names as in the preset."
        },
    )
    anchor: str = field(
        default="old",
        metadata={
            "help": "Denominator of the importance ratio. `old`: log-probs recomputed with the trainer's forward "
            "pass before the first update on a rollout batch. `rollout`: those the rollout engine reported, which "
            "saves that pass and is exact when the engine runs the same weights in the same precision."
        },
    )
    behaviour_lag: int = field(
        default=0,
        metadata={
            "help": "Rollout batches by which the policy that samples is older than the one that learns, as in "
            "asynchronous training: 0 samples with the current weights. Needs anchor='rollout'; keeps lag + 1 copies "
            "of the trained weights in memory and lag of them in a checkpoint."
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "Recompute activations in the backward pass. Unset: off; it excludes pack_rows."},
    )

    pack_rows: bool = field(
        default=True,
        metadata={"help": "Score rows as one stream without padding, where the model allows it."},
    )
    share_prompts: bool = field(
        default=True,
        metadata={"help": "With pack_rows: run a prompt once for all its samples of a micro-batch."},
    )
    whole_groups: bool = field(
        default=True,
        metadata={
            "help": "Keep the samples of a prompt in one mini-batch, where it is large enough; off: spread them, so "
            "that a mini-batch holds as many prompts as can be, and share_prompts finds little to share."
        },
    )
    completion_head: bool = field(
        default=True,
        metadata={
            "help": "Compute logits of the model's own tokens only, in chunks; off also turns pack_rows off."
        },
    )
    fused_layers: bool = field(
        default=True,
        metadata={
            "help": "On a CPU: norms as one step each and, in bfloat16, attention over short prompts and completions "
            "as whole products. Another order of the same sums."
        },
    )
    skip_zero_advantage: bool = field(
        default=True,
        metadata={
            "help": "Leave rows whose advantage is 0 out of forward and backward; they stay in the denominators. "
            "The objective's statistics then cover the other rows. Without effect with beta, or with an objective "
            "whose limits depend on all rows."
        },
    )
    max_tokens_per_micro_batch: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that go through the model at once; a micro-batch of more is cut, which changes nothing but "
            "rounding and memory. Unset: as many as keep activations below three times the weights; 0: no limit."
        },
    )
    compute_dtype: str = field(
        default="auto",
        metadata={
            "help": "Of the products in forward, backward and sampling in process, on a CPU; weights and optimizer "
            "stay as they are. `auto`: bfloat16 where it was measured to be faster and anchor is not `rollout`; "
            "`float32`; `bfloat16`."
        },
    )
    keep_freed_memory: bool = field(
        default=True,
        metadata={
            "help": "On a CPU: memory that tensors give back stays with the process (glibc's mallopt), since the "
            "system clears what it hands out anew."
        },
    )
    max_nonfinite_updates: int = field(
        default=3,
        metadata={
            "help": "Updates in a row that may be skipped because a loss, gradient or log-prob is not finite; at this "
            "many the run ends with a diagnosis."
        },
    )

    diagnostics: bool = field(
        default=True,
        metadata={
            "help": "Record clipping, spread of the log ratio and gradient removed by position, and the drift from the "
            "rollout engine (docs/diagnostics.md)."
        },
    )
    calibrate_online: bool = field(
        default=False,
        metadata={
            "help": "With objective ctpo-calibrated: fit scale, power and centre after each rollout batch, so that "
            "the band clips `share` of the tokens at every position; those given are where it starts."
        },
    )

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "objective_kwargs"]

    def __post_init__(self) -> None:
        _resolve_device_defaults(self)
        check_batches(self)
        if getattr(self, "ddp_find_unused_parameters", None) is None:  # every weight has a part in every loss
            self.ddp_find_unused_parameters = False
        super().__post_init__()
        if self.anchor not in ANCHORS:
            raise ValueError(f"anchor={self.anchor!r} is not one of {', '.join(ANCHORS)}")
        if self.max_nonfinite_updates < 1:
            raise ValueError(
                f"max_nonfinite_updates={self.max_nonfinite_updates} is too small; use at least 1"
            )
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"compute_dtype={self.compute_dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}"
            )
        if self.max_tokens_per_micro_batch is not None and self.max_tokens_per_micro_batch < 0:
            raise ValueError(
                f"max_tokens_per_micro_batch={self.max_tokens_per_micro_batch} is negative; use 0 for no limit"
            )
        check_lag(self)
        _check_online(self)
        _refuse_replaced(self)
        _check_windows(self)
        self.build_objective()

    def objective_settings(self) -> dict[str, Any]:
        """Every knob of the objective, defaults included."""
        overrides = self.objective_kwargs or {}
        assert isinstance(overrides, dict)
        return {**preset_defaults(self.objective), **overrides}

    def build_objective(self, **knobs: Any) -> Objective:
        """The objective these settings name, with these of its knobs changed."""
        overrides = self.objective_kwargs or {}
        assert isinstance(overrides, dict)  # TRL's own post-init parses a JSON string
        return preset(self.objective, **{**overrides, **knobs})

    @property
    def updates_per_rollout_batch(self) -> int:
        """Optimizer steps taken on one batch of rollouts."""
        updates: int = self.steps_per_generation * self.num_iterations // self.gradient_accumulation_steps
        return max(1, updates)


def _resolve_device_defaults(config: CTPOConfig) -> None:
    if _will_run_on_cpu(config):
        config.bf16 = bool(config.bf16)


def _will_run_on_cpu(config: CTPOConfig) -> bool:
    if config.use_cpu:
        return True
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator is None


def _check_windows(config: CTPOConfig) -> None:
    """An optimizer step must lie within one rollout batch, or span whole ones: else no denominator is exact."""
    steps, accumulation = config.steps_per_generation, config.gradient_accumulation_steps
    if accumulation < 1:
        raise ValueError(f"gradient_accumulation_steps={accumulation} is too small; use at least 1")
    if steps % accumulation and accumulation % steps:
        nearest = max(d for d in range(1, accumulation + 1) if steps % d == 0)
        raise ValueError(
            f"gradient_accumulation_steps={accumulation} and steps_per_generation={steps} (micro-batches a rollout "
            f"batch): one must divide the other; use gradient_accumulation_steps={nearest}"
        )


def _check_online(config: CTPOConfig) -> None:
    if not config.calibrate_online:
        return
    if config.objective != "ctpo-calibrated":
        raise ValueError(
            f"calibrate_online=True has no effect on objective={config.objective!r}; use objective='ctpo-calibrated'"
        )
    if not config.diagnostics:
        raise ValueError("calibrate_online=True fits what diagnostics measure; drop diagnostics=False")


def _refuse_replaced(config: CTPOConfig) -> None:
    for name, instead in _REPLACED.items():
        default = GRPOConfig.__dataclass_fields__[name].default
        if getattr(config, name) != default:
            raise ValueError(
                f"{name}={getattr(config, name)!r} has no effect under CTPO; set {instead} instead"
            )
    for name, default in _UNSUPPORTED.items():
        if getattr(config, name) != default:
            raise ValueError(
                f"{name}={getattr(config, name)!r} is not supported by CTPOTrainer; leave it unset"
            )
