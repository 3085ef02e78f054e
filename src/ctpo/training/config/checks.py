"""Checks of settings that depend on each other. Every error names one setting and a value that works.

The checks read plain attributes, so they run on a finished `CTPOConfig` and also on the values of a recipe, before
TRL is imported (`ctpo.training.config.settings`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final, Protocol

from ctpo.training.config.critic import CriticSettings, check_critic
from ctpo.training.config.from_trl import DENOMINATORS
from ctpo.training.config.groups import GroupSettings, check_groups
from ctpo.training.config.sources import correction_knobs

ADVANTAGES: Final = (
    "trl",
    "rloo",
    "maxrl",
    "opo",
    "batch",
    "reinforce++",
    "reinforce++-baseline",
    "turns",
    "each-turn",
    "gae",
)
TURN_ADVANTAGES: Final = ("turns", "each-turn")
"""Those that differ between the turns of a response."""
SCALES: Final = ("group", "batch", "none")
ANCHORS: Final = ("old", "rollout")
COMPUTE_DTYPES: Final = ("auto", "float32", "bfloat16")

_PENALTIES: Final = {"kl_coef": "beta", "kl_estimator": "beta", "entropy_coef": "entropy_coef"}
"""Knobs that objectives had in the previous release, each with the setting to use instead."""
_VLLM_CORRECTION: Final = tuple(
    f"vllm_importance_sampling_{name}" for name in ("mode", "clip_min", "clip_max")
)
"""Settings of TRL's correction of vLLM's log-probs. `rollout_correction` replaces it, and `auto` obeys them."""
NOTHING_CORRECTED: Final = (
    "rollout_correction_kwargs has no effect, since 'auto' corrects nothing where the model in training samples; drop "
    "it, or name a rollout_correction"
)
_TRUNCATIONS: Final = {"top_p": (1.0, None), "top_k": (0, -1, None), "min_p": (None, 0.0)}
"""Settings that cut the distribution that is sampled from, with the values that cut nothing."""


_FINITE: Final = (
    *("entropy_coef", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
    "off_policy_mask_threshold",
)
"""Settings of TRL for which NaN or infinity would pass, and then stop all learning or do nothing."""


class BatchSettings(Protocol):
    """The sizes of batches. A value of None is derived from the others, as TRL does."""

    generation_batch_size: int | None
    """Responses per rollout batch, over all processes."""
    num_generations: int
    """Responses per prompt."""
    per_device_train_batch_size: int
    """Responses per micro-batch, in one process."""
    steps_per_generation: int | None
    """Micro-batches per rollout batch, in one process."""
    gradient_accumulation_steps: int
    """Micro-batches per optimizer step."""


class Settings(BatchSettings, GroupSettings, CriticSettings, Protocol):
    """The settings that `check_settings` reads. `ctpo.training.config.config.CTPOConfig` describes them."""

    anchor: str
    behaviour_lag: int
    calibrate_online: bool
    compute_dtype: str
    denominators: str
    diagnostics: bool
    max_nonfinite_updates: int
    max_prompt_length: int | None
    max_tokens_per_micro_batch: int | None
    generation_kwargs: dict[str, Any] | None
    rollout_correction: str
    rollout_correction_kwargs: dict[str, Any] | str | None
    scale_rewards: str | bool
    top_entropy_quantile: float
    vllm_importance_sampling_correction: bool
    objective: str | None
    objective_kwargs: dict[str, Any] | str | None
    use_vllm: bool


def check_settings(settings: Settings, trl_defaults: Mapping[str, Any]) -> None:
    """Check everything but the batch sizes, for which there is `check_batches`.

    Args:
        settings: the values in use.
        trl_defaults: the defaults of TRL's GRPOConfig by name.

    Raises:
        ValueError: for the first setting that is out of range, has no effect, or conflicts with another one.
    """
    if settings.anchor not in ANCHORS:
        raise ValueError(f"anchor={settings.anchor!r} is not one of {', '.join(ANCHORS)}")
    if settings.max_nonfinite_updates < 1:
        raise ValueError(
            f"max_nonfinite_updates={settings.max_nonfinite_updates} is too small; use at least 1"
        )
    if settings.compute_dtype not in COMPUTE_DTYPES:
        raise ValueError(
            f"compute_dtype={settings.compute_dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}"
        )
    if settings.denominators not in DENOMINATORS:
        raise ValueError(f"denominators={settings.denominators!r} is not one of {', '.join(DENOMINATORS)}")
    if settings.max_prompt_length is not None and settings.max_prompt_length < 1:
        raise ValueError(f"max_prompt_length={settings.max_prompt_length} is too small; use at least 1")
    limit = settings.max_tokens_per_micro_batch
    if limit is not None and limit < 0:
        raise ValueError(f"max_tokens_per_micro_batch={limit} is negative; use 0 for no limit")
    check_lag(settings)
    _check_online(settings)
    _check_correction(settings, trl_defaults)
    _check_advantages(settings, trl_defaults)
    check_critic(settings)
    _check_entropy(settings)
    _check_penalties(settings)
    _check_ranks(settings)
    _check_windows(settings)
    check_groups(settings)


def check_batches(settings: BatchSettings) -> None:
    """Check that the batch sizes divide each other.

    TRL checks this too, but its errors do not give a value that works. A rollout batch holds whole groups (all
    responses to one prompt), and each process takes the same number of micro-batches from it.

    Raises:
        ValueError: naming one setting and the nearest value that works.
    """
    processes = _processes()
    batch, group, rows = (
        settings.generation_batch_size,
        settings.num_generations,
        settings.per_device_train_batch_size,
    )
    for name, value, least, why in (
        ("num_generations", group, 2, "an advantage compares the responses to one prompt"),
        ("per_device_train_batch_size", rows, 1, "a micro-batch holds at least one response"),
        ("generation_batch_size", batch, 1, "a rollout batch holds at least one response"),
        ("steps_per_generation", settings.steps_per_generation, 1, "a rollout batch has micro-batches"),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} is too small; use at least {least} ({why})")
    if batch is None:
        _check_product(settings, processes)
    elif batch % group:
        other = _nearest_divisor(batch, group)
        raise ValueError(
            f"generation_batch_size={batch} does not hold whole groups of num_generations={group} samples; use "
            f"generation_batch_size={_nearest_multiple(batch, math.lcm(group, rows * processes))}"
            + (f", or num_generations={other}" if other else "")
        )
    elif batch % (rows * processes):
        raise ValueError(_uneven(batch, group, rows, processes))


def check_lag(settings: Settings) -> None:
    """Check that `behaviour_lag` fits the other settings.

    Raises:
        ValueError: naming the setting and a value that works.
    """
    lag = settings.behaviour_lag
    if lag < 0:
        raise ValueError(f"behaviour_lag={lag} is negative; use 0 to sample with the current weights")
    if lag and settings.anchor != "rollout":
        raise ValueError(
            f"behaviour_lag={lag} needs anchor='rollout': anchor={settings.anchor!r} takes log-probs of the weights "
            "that learn, not of those that sampled"
        )
    if lag and settings.rollout_correction not in ("auto", "none"):
        raise ValueError(
            f"rollout_correction={settings.rollout_correction!r} would compare the old weights that sample with "
            f"themselves under behaviour_lag={lag}; drop it, or use off_policy_mask_threshold"
        )
    if lag and settings.use_vllm:
        raise ValueError(
            f"behaviour_lag={lag} is not possible with use_vllm=True, because vLLM samples with its own copy of the "
            "weights; use behaviour_lag=0 or use_vllm=False"
        )


def changed_vllm_correction(settings: Any, trl_defaults: Mapping[str, Any]) -> str | None:
    """The first of TRL's settings of its own correction of vLLM that is not at its default; None if all are."""
    changed = (name for name in _VLLM_CORRECTION if getattr(settings, name) != trl_defaults[name])
    return next(changed, None)


def truncation(settings: Any) -> str | None:
    """The setting that cuts the distribution that is sampled from, as `name=value`; None if nothing does."""
    for source in (vars(settings), settings.generation_kwargs or {}):
        for name, nothing in _TRUNCATIONS.items():
            if source.get(name) not in nothing:
                return f"{name}={source[name]}"
    return None


def check_truncation(settings: Any, engine: str) -> None:
    """Refuse a cut distribution where log-probs of another engine are used, which are of what is left of it.

    Raises:
        ValueError: naming the setting and what to do.
    """
    cut = truncation(settings)
    if cut is not None:
        raise ValueError(
            f"{cut}: {engine} reports log-probs of the tokens that are left, renormalised, so every ratio to it is off "
            "by the probability that was cut, and products accumulate that; drop it, or set rollout_correction=none "
            "and anchor=old"
        )


def _check_correction(settings: Settings, trl_defaults: Mapping[str, Any]) -> None:
    name, knobs = settings.rollout_correction, settings.rollout_correction_kwargs or {}
    known = correction_knobs()
    if name not in (*known, "auto"):
        raise ValueError(f"rollout_correction={name!r} is not one of auto, {', '.join(known)}")
    for knob in knobs:
        if knob not in known["recipe" if name == "auto" else name]:
            others = ", ".join(known["recipe" if name == "auto" else name])
            raise ValueError(f"rollout_correction_kwargs.{knob} is unknown for {name!r}; known: {others}")
    changed = changed_vllm_correction(settings, trl_defaults) if settings.use_vllm else None
    if changed and (name != "auto" or knobs):
        beside = "rollout_correction_kwargs" if name == "auto" else f"rollout_correction={name!r}"
        raise ValueError(f"{changed}={getattr(settings, changed)!r} has no effect beside {beside}; drop one")
    if knobs and name == "none":
        raise ValueError("rollout_correction_kwargs has no effect with rollout_correction='none'; drop it")
    if name == "custom" and not {"weight", "gates", "veto"} & set(knobs):
        raise ValueError("rollout_correction='custom' needs rollout_correction_kwargs: weight, gates or veto")
    trusted = settings.use_vllm and not settings.vllm_importance_sampling_correction
    if knobs and name == "auto" and (settings.anchor == "rollout" or trusted):
        reason = "vllm_importance_sampling_correction=False" if trusted else "anchor='rollout'"
        raise ValueError(
            f"rollout_correction_kwargs has no effect, since 'auto' corrects nothing with {reason}; drop it, or name a "
            "rollout_correction"
        )
    weighs = name not in ("auto", "none", "geo-mask", "trm-max", "trm-avg", "custom") or (
        name == "custom" and isinstance(knobs, dict) and knobs.get("weight") is not None
    )
    if settings.anchor == "rollout" and weighs:
        raise ValueError(
            f"rollout_correction={name!r} with anchor='rollout' would count the engine's difference twice, since the "
            "ratio is taken against the engine's log-probs already; use anchor='old', or a correction that only "
            "rejects (geo-mask, trm-max, trm-avg)"
        )
    corrects = name != "none" and (name != "auto" or settings.vllm_importance_sampling_correction)
    if settings.use_vllm and (corrects or settings.anchor == "rollout"):
        check_truncation(settings, "vLLM")


def _check_advantages(settings: Settings, trl_defaults: Mapping[str, Any]) -> None:
    if settings.advantages not in ADVANTAGES:
        raise ValueError(f"advantages={settings.advantages!r} is not one of {', '.join(ADVANTAGES)}")
    scale = settings.scale_rewards
    if scale not in SCALES and not isinstance(scale, bool):  # which TRL reads as "group" and "none"
        raise ValueError(f"scale_rewards={scale!r} is not one of {', '.join(SCALES)}")
    if settings.advantages == "trl":
        return
    for name in ("scale_rewards", "multi_objective_aggregation"):
        value = getattr(settings, name)
        if settings.advantages in TURN_ADVANTAGES and name == "scale_rewards":
            continue  # returns are divided as TRL divides rewards
        if value != trl_defaults[name]:
            raise ValueError(
                f"{name}={value!r} has no effect with advantages={settings.advantages!r}; drop one"
            )


def _check_entropy(settings: Settings) -> None:
    for name in _FINITE:
        value = getattr(settings, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name}={value!r} is not finite; use a number of nats, or drop it")
    if not 0 <= settings.top_entropy_quantile <= 1:
        raise ValueError(f"top_entropy_quantile={settings.top_entropy_quantile} is out of range; use 0 to 1")


def _check_windows(settings: Settings) -> None:
    """Check that an optimizer step lies within one rollout batch, or covers whole rollout batches.

    Otherwise the number of tokens in its denominator could not be known exactly.
    """
    accumulation = settings.gradient_accumulation_steps
    if accumulation < 1:
        raise ValueError(f"gradient_accumulation_steps={accumulation} is too small; use at least 1")
    steps = micro_batches_per_rollout_batch(settings)
    if steps % accumulation and accumulation % steps:
        nearest = max(d for d in range(1, accumulation + 1) if steps % d == 0)
        raise ValueError(
            f"gradient_accumulation_steps={accumulation} and steps_per_generation={steps} (micro-batches per rollout "
            f"batch): one must divide the other; use gradient_accumulation_steps={nearest}"
        )


def micro_batches_per_rollout_batch(settings: BatchSettings) -> int:
    """The value of `steps_per_generation`, derived as TRL derives it where it is not set."""
    if settings.steps_per_generation is not None:
        return settings.steps_per_generation
    if settings.generation_batch_size is None:
        return settings.gradient_accumulation_steps
    return settings.generation_batch_size // (settings.per_device_train_batch_size * _processes())


def _check_online(settings: Settings) -> None:
    if not settings.calibrate_online:
        return
    if settings.objective != "ctpo-calibrated":
        raise ValueError(
            f"calibrate_online=True has no effect on objective={settings.objective!r}; use objective='ctpo-calibrated'"
        )
    if not settings.diagnostics:
        raise ValueError(
            "calibrate_online=True needs the profile that diagnostics measure; use diagnostics=True"
        )


def _check_penalties(settings: Settings) -> None:
    for name in _PENALTIES.keys() & (settings.objective_kwargs or {}):
        raise ValueError(
            f"objective_kwargs.{name} is not supported: an objective holds no penalty; use {_PENALTIES[name]} instead"
        )


def _check_ranks(settings: Settings) -> None:
    knobs = settings.objective_kwargs
    if isinstance(knobs, dict) and knobs.get("across_ranks") and _processes() == 1:
        raise ValueError(
            "objective_kwargs.across_ranks=True pools values over the processes of a run, and this run has one; drop it"
        )


def _check_product(settings: BatchSettings, processes: int) -> None:
    """Check a rollout batch whose size is the number of micro-batches times their size."""
    name = "gradient_accumulation_steps" if settings.steps_per_generation is None else "steps_per_generation"
    steps, rows, group = (
        getattr(settings, name),
        settings.per_device_train_batch_size,
        settings.num_generations,
    )
    if steps * rows * processes % group:
        raise ValueError(
            f"{name}={steps} x per_device_train_batch_size={rows} x {processes} processes = {steps * rows * processes} "
            f"responses do not hold whole groups of num_generations={group} samples; use "
            f"{name}={_nearest_multiple(steps, group // math.gcd(group, rows * processes))}"
        )


def _uneven(batch: int, group: int, rows: int, processes: int) -> str:
    among = f" on each of {processes} processes" if processes > 1 else ""
    head = (
        f"generation_batch_size={batch} does not split into micro-batches of per_device_train_batch_size={rows}"
        f"{among}"
    )
    if batch % processes:
        return (
            f"{head}; use generation_batch_size={_nearest_multiple(batch, math.lcm(group, rows * processes))}"
        )
    return f"{head}; use per_device_train_batch_size={_largest_divisor(batch // processes, rows)}"


def _processes() -> int:
    """The number of processes of this run, as launchers such as torchrun write it into the environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _nearest_multiple(value: int, of: int) -> int:
    return max(1, round(value / of)) * of


def _largest_divisor(number: int, at_most: int) -> int:
    return next(d for d in range(min(at_most, number), 0, -1) if number % d == 0)


def _nearest_divisor(number: int, to: int) -> int | None:
    """The divisor of `number` that is nearest to `to` and at least 2; None if there is none up to twice `to`."""
    divisors = [d for d in range(2, min(number, 2 * to) + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(d - to)) if divisors else None
