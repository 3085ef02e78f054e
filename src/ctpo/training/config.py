"""`CTPOConfig`: TRL's `GRPOConfig` with the objective chosen by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from trl import GRPOConfig

from ctpo.objectives import Objective, preset, preset_defaults

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

    Where the defaults differ from GRPOConfig's: `gradient_checkpointing` and `bf16`, when left unset, are off on
    a CPU (there they cost time and precision and save nothing) and TRL's defaults elsewhere.

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
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations in the backward pass. Unset: on for accelerators, off on CPU."
        },
    )
    max_nonfinite_updates: int = field(
        default=3,
        metadata={
            "help": "Updates in a row that may be skipped because a loss, gradient or log-prob is not finite; at this "
            "many the run ends with a diagnosis."
        },
    )

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "objective_kwargs"]

    def __post_init__(self) -> None:
        _resolve_device_defaults(self)
        super().__post_init__()
        if self.anchor not in ANCHORS:
            raise ValueError(f"anchor={self.anchor!r} is not one of {', '.join(ANCHORS)}")
        _refuse_replaced(self)
        _check_windows(self)
        self.build_objective()

    def objective_settings(self) -> dict[str, Any]:
        """Every knob of the objective, defaults included."""
        overrides = self.objective_kwargs or {}
        assert isinstance(overrides, dict)
        return {**preset_defaults(self.objective), **overrides}

    def build_objective(self) -> Objective:
        """The objective these settings name."""
        overrides = self.objective_kwargs or {}
        assert isinstance(overrides, dict)  # TRL's own post-init parses a JSON string
        return preset(self.objective, **overrides)

    @property
    def updates_per_rollout_batch(self) -> int:
        """Optimizer steps taken on one batch of rollouts."""
        updates: int = self.steps_per_generation * self.num_iterations // self.gradient_accumulation_steps
        return max(1, updates)


def _resolve_device_defaults(config: CTPOConfig) -> None:
    if _will_run_on_cpu(config):
        config.bf16 = bool(config.bf16)  # unset checkpointing is off in transformers
        return
    new_name = "activation_checkpointing"  # transformers' name from 5.2x on; it mirrors the old one
    if config.gradient_checkpointing is None and getattr(config, new_name, None) is None:
        setattr(config, new_name if hasattr(config, new_name) else "gradient_checkpointing", True)


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
