"""A recipe: what one training run is told, read from YAML and the command line.

One flat namespace of keys. Those of `Recipe` say what to train on and how to evaluate; every other key is a
field of `CTPOConfig`, by TRL's own name (`ctpo.training.config.settings` tells them apart). Nothing heavy is imported
here, so that help and mistakes cost no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ctpo.errors import UserError
from ctpo.tasks import get_task

EMBEDDED_MODEL = "embedded"
SMOLLM2 = "smollm2"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


RIVALS = {
    "rollout_batches": ("max_steps", "num_train_epochs"),
    "max_steps": ("rollout_batches", "num_train_epochs"),
    "num_train_epochs": ("rollout_batches", "max_steps"),
    "dataset": ("train_problems",),
    "train_problems": ("dataset",),
    "steps_per_generation": ("generation_batch_size",),
    "generation_batch_size": ("steps_per_generation",),
}
"""Keys that say the same another way: an override drops them from the recipe; both given at once is an error."""

DEFAULT_TRAIN_PROBLEMS = 16_384
_FOREVER = 1e6  # of seconds or megabytes: beyond what any program is worth


_COUNTS = (
    *("train_problems", "eval_problems", "rollout_batches", "rollout_batch_size", "threads"),
    *("max_prompt_length", "overlong_buffer"),
)
COLUMNS = ("prompt", "answer", "id")


def _key(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is about; how it optimises is `CTPOConfig`'s. Each field says what it is in its metadata."""

    task: str = _key(
        "arithmetic", "task by name, file or generator (ctpo eval --help): prompts, tool, answer check"
    )
    model: str = _key(EMBEDDED_MODEL, "'embedded' (ships with the task), a model directory, or a hub id")
    dataset: Path | None = _key(
        None, "JSONL or parquet file of training problems (see columns), not the task's own"
    )
    eval_dataset: Path | None = _key(None, "JSONL or parquet file of held-out problems, not the task's own")
    columns: dict[str, str] | None = _key(
        None, "names of the prompt, answer and id columns, e.g. {prompt: question}; unset for the usual ones"
    )
    train_problems: int | None = _key(
        None, f"training problems drawn from the task; unset for {DEFAULT_TRAIN_PROBLEMS}"
    )
    max_prompt_length: int | None = _key(
        None, "training prompts of more tokens are left out; unset for what the model's context has room for"
    )
    mask_void_turns: Literal["none", "response", "turn"] = _key(
        "none",
        "keep out of the loss: responses without call and answer (response), or whose last turn has neither (turn)",
    )
    overlong_buffer: int | None = _key(
        None, "tokens before max_completion_length over which the reward falls by 1 (DAPO's soft punishment)"
    )
    eval_problems: int = _key(1_024, "held-out problems an evaluation samples, one response each")
    eval_every: int = _key(4, "rollout batches between held-out evaluations; 0 for only before and after")
    rollout_batches: int | None = _key(None, "length of the run in rollout batches, instead of max_steps")
    rollout_batch_size: int | None = _key(None, "responses decoded at once; unset for a whole rollout batch")
    transcripts: int = _key(16, "sample transcripts written with each evaluation")
    shared: Path | None = _key(
        None, "directory where runs of a comparison keep what each would find out again; ctpo compare sets it"
    )
    threads: int | None = _key(None, "threads torch computes with on CPU; unset leaves torch's own choice")
    tool_timeout_s: float = _key(3.0, "wall-clock seconds one program may take")
    tool_memory_mb: int = _key(512, "megabytes one program may take")
    unsafe_no_isolation: bool = _key(
        False, "run model-written programs unisolated: they can do whatever you can"
    )

    def __post_init__(self) -> None:
        get_task(self.task)
        _check_model(self.model)
        for name in _COUNTS:
            _at_least(name, getattr(self, name), 1)
        _check_columns(self.columns)
        for name in ("eval_every", "transcripts"):
            _at_least(name, getattr(self, name), 0)
        for name in ("tool_timeout_s", "tool_memory_mb"):
            if not 0 < getattr(self, name) < _FOREVER:
                raise UserError(
                    f"{name}={getattr(self, name)} is out of range; use more than 0 and less than {_FOREVER:.0f}"
                )


def embedded_recipe() -> dict[str, Any]:
    """The keys of the recipe that `ctpo train` runs when given none."""
    import yaml

    text = files("ctpo.tasks.arithmetic").joinpath("train.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a YAML recipe.

    Raises:
        UserError: if the file is missing, not YAML, or not a mapping.
    """
    import yaml

    try:
        keys = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"recipe {path} does not exist; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} cannot be read ({error}); give a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"recipe {path} is not YAML ({' '.join(str(error).split())}); mend it") from None
    if not isinstance(keys, dict):
        raise UserError(
            f"recipe {path} holds {type(keys).__name__}, not a mapping; write one `key: value` a line"
        )
    return keys


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """`key=value …` from a command line, values in YAML's notation; `a.b=c` sets one entry of a mapping."""
    import yaml

    keys: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"{word!r} is not key=value; write for example learning_rate=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            parsed = value
        outer, dot, inner = name.partition(".")
        if dot:
            keys = merge(keys, {outer: {inner: parsed}})
        else:
            keys[outer] = parsed
    return keys


def merge(keys: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides on top of a recipe's keys; mappings are merged, everything else is replaced.

    Overriding the objective drops the settings of the one before, which need not exist for the new one; and a
    key drops those that say the same another way (`RIVALS`).
    """
    merged = dict(keys)
    for name, value in overrides.items():
        for rival in RIVALS.get(name, ()):
            if value is not None and rival not in overrides:
                merged.pop(rival, None)
    if overrides.get("objective", merged.get("objective")) != merged.get("objective"):
        merged.pop("objective_kwargs", None)
    for name, value in overrides.items():
        held = merged.get(name)
        merged[name] = {**held, **value} if isinstance(held, dict) and isinstance(value, dict) else value
    return merged


def _check_model(model: str) -> None:
    path = Path(model)
    try:
        if model in (EMBEDDED_MODEL, SMOLLM2) or (path / "config.json").is_file():
            return
        exists = path.exists()
    except OSError as error:
        raise UserError(
            f"model={model} cannot be read ({error.strerror}); give a directory or a hub id"
        ) from None
    if exists:
        raise UserError(
            f"model={model} is not a model directory (it holds no config.json); give one, or a hub id"
        )
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise UserError(
            f"model={model} does not exist; give a directory, a hub id (owner/name) or {EMBEDDED_MODEL!r}"
        )


def _check_columns(columns: Mapping[str, str] | None) -> None:
    for name, column in (columns or {}).items():
        if name not in COLUMNS:
            raise UserError(f"columns.{name}={column} is unknown; name columns of {', '.join(COLUMNS)}")


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{name}={value} is too small; use at least {least}")
