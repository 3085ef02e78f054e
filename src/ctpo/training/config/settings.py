"""Checks a recipe's keys, and makes the two configurations of a run from them.

`check` needs neither torch nor TRL, so it answers at once; `ctpo train` calls it before it loads anything. `build`
makes the `CTPOConfig` as well, which imports both.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.old_names import current_knobs
from ctpo.runs.files import read_bytes
from ctpo.training.config.checks import NOTHING_CORRECTED, check_batches, check_settings
from ctpo.training.config.critic import critic_knobs
from ctpo.training.config.from_trl import DEFAULT_OBJECTIVE, LOSS_SETTINGS, translate
from ctpo.training.config.older import OLDER_KEYS
from ctpo.training.config.recipe import RIVALS, Recipe
from ctpo.training.config.sources import preset_knobs, trainer_fields, trl_fields

if TYPE_CHECKING:
    from ctpo.training.config.config import CTPOConfig

_DECIDED = {
    "logging_steps": "a run logs once per rollout batch",
    "logging_strategy": "a run logs once per rollout batch",
    "eval_strategy": "held-out evaluation is set by eval_every and eval_problems",
    "resume_from_checkpoint": "use `ctpo train --resume RUN`",
    "disable_tqdm": "ctpo has its own display",
    "logging_first_step": "a run logs once per rollout batch",
    "eval_on_start": "every run evaluates before training",
    "ignore_data_skip": "a resumed run would train on the same problems again",
    "save_only_model": "such a checkpoint could not be resumed",
    "records": "a run always writes records",
    "generation_kwargs": "the rollout engines take temperature, top_p and top_k only",
    "min_p": "the rollout engines take temperature, top_p and top_k only",
    "repetition_penalty": "the rollout engines take temperature, top_p and top_k only",
    "vllm_structured_outputs_regex": "the rollout engines take temperature, top_p and top_k only",
}
"""Settings of TRL that a recipe cannot change, each with the reason."""
_AT_LEAST_ONE = (lambda value: value >= 1, "at least 1")
_BELOW_ONE = (lambda value: 0 <= value < 1, "0 or more and less than 1")
_NOT_NEGATIVE = (lambda value: 0 <= value < math.inf, "0 or more")
OPTIMIZER_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("adam_beta1", "adam_beta2"), _BELOW_ONE),
    **dict.fromkeys(("adam_epsilon", "weight_decay", "max_grad_norm"), _NOT_NEGATIVE),
    "save_steps": (lambda value: 0 < value < math.inf, "more than 0 and less than infinity"),
    "max_steps": (lambda value: value == -1 or value >= 1, "1 or more; leave it out for num_train_epochs"),
    "num_train_epochs": (lambda value: 0 < value <= 1e6, "more than 0 and at most a million"),
}
"""What every kind of training asks of the optimizer, of saving, and of its length."""
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **OPTIMIZER_RANGES,
    "learning_rate": _BELOW_ONE,  # also refuses nan
    "temperature": (lambda value: 0 < value < math.inf, "more than 0"),
    "top_p": (lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    "top_k": (lambda value: value >= 0, "0 (all tokens) or more"),
    "seed": (lambda value: 0 <= value < 2**32, "0 to 4294967295"),
    "max_completion_length": _AT_LEAST_ONE,
    "per_device_train_batch_size": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _AT_LEAST_ONE,
    "num_iterations": _AT_LEAST_ONE,
    "ddp_timeout": (lambda value: value >= 1, "at least 1 second"),
    "num_generations": (lambda value: True, "2 or more"),  # check_batches says more of a number
}
"""Values that TRL would only fail on in the middle of a run."""
ALWAYS_SAVED = ("seed", "learning_rate", "max_completion_length", "temperature", "top_p", "top_k")
"""Settings that are written into every run's recipe, so that another default in a later TRL does not change it."""


_IN_FILES = ("accelerator_config", "fsdp_config", "deepspeed")
"""Settings of TRL that may be the path of a JSON file."""


def check(keys: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, and the given settings of `CTPOConfig`, without importing torch or TRL.

    What only TRL or an objective can check (a value out of an objective's range, for example) is left to `build`.

    Raises:
        UserError: for the first key that is unknown, of a wrong type, out of range, or in conflict with another.
    """
    ours, given = split(keys)
    _check_conflicts(keys)
    given = _in_our_words(given)
    for name, (holds, wanted) in _RANGES.items():
        if name in given and not (given[name] is not None and holds(given[name])):
            raise UserError(f"{name}={given[name]} is out of range; use {wanted}")
    recipe = Recipe(**ours)
    settings: Any = SimpleNamespace(**{**_defaults(), "objective": DEFAULT_OBJECTIVE, **given})
    try:
        check_batches(settings)
        check_settings(settings, _trl_defaults())
    except ValueError as error:
        raise UserError(str(error)) from None
    _check_objective(settings.objective, settings.objective_kwargs or {})
    _check_together(recipe, settings)
    return recipe, given


def build(keys: Mapping[str, Any]) -> tuple[Recipe, CTPOConfig]:
    """The two configurations of a run, fully checked. Imports torch and TRL.

    Raises:
        UserError: for the first key that is unknown, of a wrong type, out of range, or in conflict with another.
    """
    recipe, given = check(keys)
    from ctpo.training.config.config import CTPOConfig

    # Only the main process prints the notices of transformers.
    quiet = {"log_level_replica": "error", **given}
    with one_line_errors():
        config = CTPOConfig(**quiet, logging_strategy="steps", disable_tqdm=True)
    config.logging_steps = config.updates_per_rollout_batch
    if recipe.rollout_batches is not None:
        config.max_steps = recipe.rollout_batches * config.updates_per_rollout_batch
    return recipe, config


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A context for making a config of TRL's. What it finds wrong with its settings is a `UserError` of one line."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        ImportError,
        OSError,
        LookupError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise UserError(" ".join(str(error).split())) from None


def resolved(keys: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain YAML values that runs the same run again, without importing torch or TRL.

    It holds every key of `Recipe`, the settings of TRL that were given or that shape the result most, and the
    objective with all of its knobs. The output directory is not part of it.

    Raises:
        UserError: as `check` does.
    """
    recipe, given = check(keys)
    ours = {name: str(value) if isinstance(value, Path) else value for name, value in vars(recipe).items()}
    fields = trainer_fields()
    effective = {name: given.get(name, fields[name].default) for name in ALWAYS_SAVED}
    objective = given.get("objective", DEFAULT_OBJECTIVE)
    knobs = {**preset_knobs()[objective], **(given.get("objective_kwargs") or {})}
    given = {name: value for name, value in given.items() if name != "output_dir"}
    if given.get("advantages") == "gae":
        given["critic"] = critic_knobs(given.get("critic"))
    return {**ours, **effective, **given, "objective": objective, "objective_kwargs": knobs}


def split(keys: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's keys as two mappings, those of `Recipe` and those of `CTPOConfig`, each value of its field's type.

    Raises:
        UserError: for a key that is unknown, cannot be set, or has a value of a wrong type.
    """
    ours: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name, value in keys.items():
        if name in _DECIDED:
            raise UserError(f"{name}={value!r} cannot be set: {_DECIDED[name]}; drop it")
        if name in _recipe_types():
            ours[name] = checked_value(name, value, _recipe_types()[name])
        elif name == "objective_kwargs" and isinstance(value, dict | str):
            knobs = {str(knob): _number(setting) for knob, setting in _mapping(name, value).items()}
            objective = keys.get("objective") or DEFAULT_OBJECTIVE
            try:
                given[name] = current_knobs(knobs, preset_knobs().get(objective, {}))
            except ValueError as error:
                raise UserError(f"objective_kwargs: {error}") from None
        elif name in ("rollout_correction_kwargs", "curriculum", "critic") and isinstance(value, dict | str):
            given[name] = {str(knob): _number(setting) for knob, setting in _mapping(name, value).items()}
        elif name in trainer_fields():
            wanted = trainer_fields()[name].type
            given[name] = checked_value(name, value, wanted)
            if isinstance(value, str) and "dict" in str(wanted):
                as_file = name in _IN_FILES and not value.lstrip().startswith("{")
                given[name] = _from_file(name, Path(value)) if as_file else _mapping(name, value)
        else:
            raise UserError(_unknown(str(name), [*_recipe_types(), *trainer_fields()]))
    return ours, given


def _in_our_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given settings, with what older keys and settings of TRL's loss stand for in their place."""
    try:
        translation = translate(given, _trl_defaults())
    except ValueError as error:
        raise UserError(str(error)) from None
    translation.tell(3)
    ours = {name: value for name, value in given.items() if name not in (*LOSS_SETTINGS, *OLDER_KEYS)}
    return {**ours, **translation.settings}


@cache
def _defaults() -> Mapping[str, Any]:
    fields = trainer_fields().items()
    return {name: each.default for name, each in fields if each.default is not dataclasses.MISSING}


@cache
def _trl_defaults() -> Mapping[str, Any]:
    return {name: each.default for name, each in trl_fields().items()}


@cache
def _recipe_types() -> dict[str, Any]:
    hints = get_type_hints(Recipe)
    return {each.name: hints[each.name] for each in dataclasses.fields(Recipe)}


@cache
def _adapter(wanted: Any) -> TypeAdapter[Any]:
    return TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True))


def checked_value(name: str, value: Any, wanted: Any) -> Any:
    """The value as the wanted type. A number may come as a string, because YAML reads 2e-4 as one."""
    shown = getattr(wanted, "__name__", None) if isinstance(wanted, type) else str(wanted)
    if isinstance(value, bool) and wanted in (int, float):
        raise UserError(f"{name}={value!r} is not of type {shown}")
    try:
        checked = _adapter(wanted).validate_python(value)
    except PydanticSchemaGenerationError:  # a type without a schema, which TRL checks itself
        return value
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(
            f"{name}={value!r} is not of type {shown} ({reason[0].lower()}{reason[1:]})"
        ) from None
    if isinstance(checked, float) and math.isnan(checked):
        raise UserError(f"{name}={value} is out of range; it is not a number")
    # An int stays an int where a float would do, as in TRL's own defaults.
    return value if type(value) is int and type(checked) is float else checked


def _check_conflicts(keys: Mapping[str, Any]) -> None:
    for one, others in RIVALS.items():
        for other in others:
            if keys.get(one) is not None and keys.get(other) is not None:
                raise UserError(f"{one}={keys[one]} and {other}={keys[other]} are both set; drop one")


def _check_objective(name: str, knobs: Mapping[str, Any]) -> None:
    """Check the names of the objective and of its knobs."""
    known = preset_knobs()
    if name not in known:
        families = {each.partition("-")[0]: each for each in sorted(known)} | {each: each for each in known}
        raise UserError(f"objective={name!r} is unknown; {_nearest(name.lower(), families)}")
    # A knob is also recognised without its unit: "hihg" is near "log_high".
    spellings = {each.rpartition("_")[2]: each for each in known[name]} | {each: each for each in known[name]}
    for knob in knobs:
        if knob not in known[name]:
            raise UserError(
                f"objective_kwargs.{knob} is unknown for objective={name!r}; {_nearest(knob, spellings)}"
            )


def _nearest(name: str, spellings: Mapping[str, str]) -> str:
    """A hint at the known name whose spelling is nearest, and the known names."""
    near = difflib.get_close_matches(name, spellings, n=1)
    hint = f"did you mean {spellings[near[0]]!r}? " if near else ""
    return f"{hint}Known: {', '.join(sorted(set(spellings.values())))}"


def _check_together(recipe: Recipe, settings: Any) -> None:
    """Check settings of `CTPOConfig` against keys of the recipe."""
    if settings.use_vllm and recipe.rollout_batch_size is not None:
        raise UserError(
            f"rollout_batch_size={recipe.rollout_batch_size} has no effect with use_vllm=True, because vLLM sizes its "
            "own batches; drop it"
        )
    difficulty = (recipe.columns or {}).get("difficulty")
    if difficulty is not None and not settings.curriculum:
        raise UserError(
            f"columns.difficulty={difficulty} has no effect without curriculum; set that, or drop it"
        )
    unused = settings.rollout_correction == "auto" and settings.rollout_correction_kwargs
    if unused and not settings.use_vllm:
        raise UserError(NOTHING_CORRECTED)
    if recipe.use_peft:
        require("use_peft=true", "peft", "peft")
    if settings.use_vllm and find_spec("vllm") is None:
        raise UserError("use_vllm=True needs vLLM, which is not installed; pip install 'trl[vllm]'")
    if recipe.overlong_buffer is not None and recipe.overlong_buffer > settings.max_completion_length:
        raise UserError(
            f"overlong_buffer={recipe.overlong_buffer} exceeds max_completion_length="
            f"{settings.max_completion_length}; use a smaller number of tokens"
        )
    if recipe.overlong_buffer is not None and settings.advantages == "maxrl":
        raise UserError(
            f"overlong_buffer={recipe.overlong_buffer} makes rewards negative, which advantages='maxrl' cannot take; "
            "drop one"
        )


def _mapping(name: str, value: dict[str, Any] | str) -> dict[str, Any]:
    """A mapping, which may come as a JSON string as TRL takes it."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}={value!r} is not JSON ({error}); give key: value pairs") from None
    if not isinstance(parsed, dict):
        raise UserError(f"{name}={value!r} is not of type dict; give key: value pairs")
    return parsed


def _from_file(name: str, path: Path) -> dict[str, Any]:
    """The mapping in a JSON file, which may be anything that somebody has put there."""
    try:
        content = json.loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}={path} cannot be read ({reason}); give a JSON file") from None
    if not isinstance(content, dict):
        raise UserError(f"{name}={path} holds no JSON object; give key: value pairs")
    return content


def _number(value: Any) -> Any:
    """The value, as a float if it is a string that holds a number: YAML 1.1 reads 1e-4 as a string.

    So are the values inside of mappings and lists.
    """
    if isinstance(value, dict):
        return {name: _number(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_number(each) for each in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _unknown(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `ctpo train --help` and TRL's GRPOConfig"
    return f"unknown key {name!r}; {hint}"
