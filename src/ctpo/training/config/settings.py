"""From a recipe's keys to the two checked configurations."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from ctpo.errors import UserError
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.recipe import RIVALS, Recipe

# Settings of TRL that the run itself decides.
_DECIDED = {
    "logging_steps": "a run logs once a rollout batch",
    "logging_strategy": "a run logs once a rollout batch",
    "eval_strategy": "held-out evaluation is set by eval_every and eval_problems",
    "resume_from_checkpoint": "use `ctpo train --resume RUN`",
    "disable_tqdm": "the display is ctpo's own",
    "logging_first_step": "a run logs once a rollout batch",
    "eval_on_start": "every run evaluates before training",
    "ignore_data_skip": "a resumed run would train on the same problems again",
    "save_only_model": "a checkpoint that cannot be resumed is none",
    "generation_kwargs": "the engines have temperature, top_p and top_k",
    "min_p": "the engines have temperature, top_p and top_k",
    "repetition_penalty": "the engines have temperature, top_p and top_k",
    "vllm_structured_outputs_regex": "the engines have temperature, top_p and top_k",
}
_AT_LEAST_ONE = (lambda value: value >= 1, "at least 1")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda value: 0 <= value < 1, "0 or more and less than 1"),  # also refuses nan
    "temperature": (lambda value: 0 < value < math.inf, "more than 0"),
    "top_p": (lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    "top_k": (lambda value: value >= 0, "0 (all tokens) or more"),
    "seed": (lambda value: 0 <= value < 2**32, "0 to 4294967295"),
    "max_completion_length": _AT_LEAST_ONE,
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "num_iterations": _AT_LEAST_ONE,
}
# Written into every run's recipe, so that a later default of TRL's cannot change what it means.
_ALWAYS_SAVED = ("seed", "learning_rate", "max_completion_length", "temperature", "top_p", "top_k")


def build(keys: Mapping[str, Any]) -> tuple[Recipe, CTPOConfig]:
    """Check every key and make the two configurations.

    Raises:
        UserError: for the first key that is unknown, of a wrong type, out of range, or in conflict with another.
    """
    ours, trainers = split(keys)
    _check_conflicts(keys)
    _check_ranges(trainers)
    recipe = Recipe(**ours)
    try:
        trainers = {
            "log_level_replica": "error",
            **trainers,
        }  # transformers' own notices are the main process's
        config = CTPOConfig(**trainers, logging_strategy="steps", disable_tqdm=True)
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from None
    _check_together(recipe, config)
    config.logging_steps = config.updates_per_rollout_batch
    if recipe.rollout_batches is not None:
        config.max_steps = recipe.rollout_batches * config.updates_per_rollout_batch
    return recipe, config


def _check_together(recipe: Recipe, config: CTPOConfig) -> None:
    if config.use_vllm and recipe.rollout_batch_size is not None:
        raise UserError(
            f"rollout_batch_size={recipe.rollout_batch_size} has no effect with use_vllm, which decides itself; drop it"
        )
    if config.use_vllm and find_spec("vllm") is None:
        raise UserError("use_vllm=True needs vLLM, which is not installed; pip install 'trl[vllm]'")
    if recipe.overlong_buffer is not None and recipe.overlong_buffer > config.max_completion_length:
        raise UserError(
            f"overlong_buffer={recipe.overlong_buffer} exceeds max_completion_length="
            f"{config.max_completion_length}; use a part of it"
        )


def _check_ranges(trainers: Mapping[str, Any]) -> None:
    """What TRL would only trip over later, in the middle of a run."""
    for name, (holds, wanted) in _RANGES.items():
        if name in trainers and not (trainers[name] is not None and holds(trainers[name])):
            raise UserError(f"{name}={trainers[name]} is out of range; use {wanted}")


def resolved(recipe: Recipe, config: CTPOConfig, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The run as plain YAML values, a recipe that runs it again: all of our keys, those of TRL's that were given or
    that shape the result most, the objective with every setting. The output directory is not part of it."""
    ours = {name: str(value) if isinstance(value, Path) else value for name, value in vars(recipe).items()}
    given = {name: value for name, value in split(keys)[1].items() if name != "output_dir"}
    effective = {name: getattr(config, name) for name in _ALWAYS_SAVED}
    objective = {"objective": config.objective, "objective_kwargs": config.objective_settings()}
    return {**ours, **effective, **given, **objective}


def split(keys: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's keys as (Recipe's, CTPOConfig's), each value of its field's type."""
    ours: dict[str, Any] = {}
    trainers: dict[str, Any] = {}
    for name, value in keys.items():
        if name in _DECIDED:
            raise UserError(f"{name}={value!r} cannot be set: {_DECIDED[name]}; drop it")
        if name in _types(Recipe):
            ours[name] = _checked(Recipe, name, value)
        elif name == "objective_kwargs" and isinstance(value, dict):
            trainers[name] = {knob: _number(setting) for knob, setting in value.items()}
        elif name in _types(CTPOConfig):
            trainers[name] = _checked(CTPOConfig, name, value)
        else:
            raise UserError(_unknown(str(name), [*_types(Recipe), *_types(CTPOConfig)]))
    return ours, trainers


@cache
def _types(owner: type) -> dict[str, Any]:
    hints = get_type_hints(owner)
    return {each.name: hints[each.name] for each in dataclasses.fields(owner) if each.init}


def _checked(owner: type, name: str, value: Any) -> Any:
    """The value as the field's type; numbers may come as strings (YAML reads 2e-4 as one)."""
    wanted = _types(owner)[name]
    shown = getattr(wanted, "__name__", None) if isinstance(wanted, type) else str(wanted)
    if isinstance(value, bool) and wanted in (int, float):
        raise UserError(f"{name}={value!r} is not of type {shown}")
    try:
        adapter = TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True))
        checked = adapter.validate_python(value)
    except PydanticSchemaGenerationError:  # a type of TRL's that has no schema: its own checks must do
        return value
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(
            f"{name}={value!r} is not of type {shown} ({reason[0].lower()}{reason[1:]})"
        ) from None
    # An int stays one where a float would do, as in TRL's own defaults.
    return value if type(value) is int and type(checked) is float else checked


def _check_conflicts(keys: Mapping[str, Any]) -> None:
    for one, others in RIVALS.items():
        for other in others:
            if keys.get(one) is not None and keys.get(other) is not None:
                raise UserError(f"{one}={keys[one]} and {other}={keys[other]} are both set; drop one")


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a string; inside a free mapping no field's type mends that."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `ctpo train --help` and TRL's GRPOConfig"
    return f"unknown key {name!r}; {hint}"
