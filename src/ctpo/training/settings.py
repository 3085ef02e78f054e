"""From a recipe's keys to the two checked configurations."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from ctpo.errors import UserError
from ctpo.training.config import CTPOConfig
from ctpo.training.recipe import Recipe

# Pairs that say the same thing twice, and why.
_CONFLICTS = (
    ("rollout_batches", "max_steps", "max_steps = rollout_batches x updates per rollout batch"),
    ("dataset", "train_problems", "train_problems draws from the task's own generator"),
    ("generation_batch_size", "steps_per_generation", "each follows from the other"),
)
# Settings of TRL that the run itself decides.
_DECIDED = {
    "logging_steps": "a run logs once a rollout batch",
    "logging_strategy": "a run logs once a rollout batch",
    "eval_strategy": "held-out evaluation is set by eval_every and eval_problems",
    "resume_from_checkpoint": "use `ctpo train --resume RUN`",
    "disable_tqdm": "the display is ctpo's own",
}


def build(keys: Mapping[str, Any]) -> tuple[Recipe, CTPOConfig]:
    """Check every key and make the two configurations.

    Raises:
        UserError: for the first key that is unknown, of a wrong type, or in conflict with another.
    """
    ours, trainers = split(keys)
    _check_conflicts(keys)
    recipe = Recipe(**ours)
    try:
        config = CTPOConfig(**trainers, logging_strategy="steps", disable_tqdm=True)
    except (ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from None
    config.logging_steps = config.updates_per_rollout_batch
    if recipe.rollout_batches is not None:
        config.max_steps = recipe.rollout_batches * config.updates_per_rollout_batch
    return recipe, config


def resolved(recipe: Recipe, config: CTPOConfig, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The run as plain YAML values, a recipe that runs it again: all of our keys, those of TRL's that were
    given, the objective with every setting. The output directory is not part of it."""
    ours = {name: str(value) if isinstance(value, Path) else value for name, value in vars(recipe).items()}
    if recipe.dataset is not None:
        del ours["train_problems"]  # the two exclude each other
    given = {name: value for name, value in split(keys)[1].items() if name != "output_dir"}
    objective = {"objective": config.objective, "objective_kwargs": config.objective_settings()}
    return {**ours, **given, **objective, "seed": config.seed}


def split(keys: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's keys as (Recipe's, CTPOConfig's), each value of its field's type."""
    ours: dict[str, Any] = {}
    trainers: dict[str, Any] = {}
    for name, value in keys.items():
        if name in _DECIDED:
            raise UserError(f"{name}={value!r} cannot be set: {_DECIDED[name]}; drop it")
        if name in _types(Recipe):
            ours[name] = _checked(Recipe, name, value)
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
    try:
        checked = TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except PydanticSchemaGenerationError:  # a type of TRL's that has no schema: its own checks must do
        return value
    except ValidationError as error:
        shown = getattr(wanted, "__name__", None) if isinstance(wanted, type) else str(wanted)
        reason = error.errors()[0]["msg"]
        raise UserError(
            f"{name}={value!r} is not of type {shown} ({reason[0].lower()}{reason[1:]})"
        ) from None
    return (
        value if checked == value else checked
    )  # an int stays one where a float would do, as TRL's own types


def _check_conflicts(keys: Mapping[str, Any]) -> None:
    for one, other, why in _CONFLICTS:
        if keys.get(one) is not None and keys.get(other) is not None:
            raise UserError(f"{one}={keys[one]} and {other}={keys[other]} are both set; drop one ({why})")


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `ctpo train --help` and TRL's GRPOConfig"
    return f"unknown key {name!r}; {hint}"
