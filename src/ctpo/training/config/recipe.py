"""Recipes: the keys of one training run, read from YAML and from the command line.

All keys share one flat namespace. The keys of `Recipe` describe the data and the evaluation. Every other key is a
field of `CTPOConfig`, under TRL's own name (`ctpo.training.config.settings` separates the two). This module imports
neither torch nor TRL, so that help and error messages come at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from ctpo.errors import UserError
from ctpo.runs.script import KEY as SCRIPT
from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import SHIPPED_MODELS
from ctpo.training.config.from_trl import LOSS_SETTINGS

EMBEDDED_MODEL: Final = "embedded"
SMOLLM2: Final = "smollm2"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")

RIVALS: Final = {
    "rollout_batches": ("max_steps", "num_train_epochs"),
    "max_steps": ("rollout_batches", "num_train_epochs"),
    "num_train_epochs": ("rollout_batches", "max_steps"),
    "dataset": ("train_problems",),
    "train_problems": ("dataset",),
    "steps_per_generation": ("generation_batch_size",),
    "generation_batch_size": ("steps_per_generation",),
}
"""Keys that set the same thing in another way. Setting two of them at once is an error; an override with one of them
removes the others from the recipe."""

ENGINE: Final = "engine"
DEFAULT_TRAIN_PROBLEMS: Final = 16_384
COLUMNS: Final = ("prompt", "answer", "id", "difficulty")
_LARGEST: Final = 1e6
"""The largest number of seconds or megabytes that a program may be given."""
_MOST_THREADS: Final = 4096
_COUNTS: Final = (
    *("train_problems", "eval_problems", "rollout_batches", "rollout_batch_size"),
    *("max_prompt_length", "overlong_buffer"),
)


def setting(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True, kw_only=True)
class ModelKeys:
    """What every kind of training says of its task, its model and the machine.

    Raises:
        UserError: if a task or a model is unknown, or a number is out of range.
    """

    task: str = setting(
        "arithmetic",
        "name, file or generator of the task: it gives prompts, tool and answer check (ctpo eval --help)",
    )
    model: str = setting(
        EMBEDDED_MODEL,
        "'embedded' or 'embedded-worksheet' (ship for the tasks arithmetic and worksheet), a directory, or a hub id",
    )
    use_peft: bool = setting(
        False,
        "train a LoRA adapter beside the frozen weights; needs the extra [peft]. model/ holds the merged model",
    )
    lora_r: int = setting(16, "rank of the adapter, the width of its two factors")
    lora_alpha: int = setting(32, "the adapter is multiplied by lora_alpha / lora_r")
    lora_dropout: float = setting(0.0, "dropout before the adapter; it makes importance ratios noisy")
    lora_target_modules: str | list[str] | None = setting(
        None, "modules that get an adapter, e.g. [q_proj, v_proj] or all-linear; unset for peft's choice"
    )
    lora_modules_to_save: list[str] | None = setting(
        None, "modules that are trained whole beside the adapter, e.g. [lm_head]"
    )
    use_rslora: bool = setting(False, "multiply the adapter by lora_alpha / √lora_r instead")
    threads: int | None = setting(None, "number of CPU threads for torch; unset for torch's own choice")
    tool_timeout_s: float = setting(3.0, "wall-clock time limit of one program, in seconds")
    tool_memory_mb: int = setting(512, "memory limit of one program, in megabytes")
    unsafe_no_isolation: bool = setting(
        False, "run model-written programs without isolation: they can then do whatever you can"
    )

    @property
    def tool_limits(self) -> dict[str, Any]:
        """The keyword arguments of `ctpo.rollout.tools.open_tools`."""
        return {
            "timeout_s": self.tool_timeout_s,
            "memory_mb": self.tool_memory_mb,
            "unsafe_no_isolation": self.unsafe_no_isolation,
        }

    def __post_init__(self) -> None:
        _check_model(self.model)
        at_least("threads", self.threads, 1)
        if (self.threads or 1) > _MOST_THREADS:
            raise UserError(f"threads={self.threads} is too large; use at most {_MOST_THREADS}")
        self._check_lora()
        for name in ("tool_timeout_s", "tool_memory_mb"):
            if not 0 < getattr(self, name) < _LARGEST:
                raise UserError(
                    f"{name}={getattr(self, name)} is out of range; use more than 0 and less than {_LARGEST:.0f}"
                )

    def _check_lora(self) -> None:
        at_least("lora_r", self.lora_r, 1)
        at_least("lora_alpha", self.lora_alpha, 1)
        if not 0 <= self.lora_dropout < 1:
            raise UserError(
                f"lora_dropout={self.lora_dropout} is out of range; use 0 or more and less than 1"
            )
        if self.use_peft:
            return
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.startswith(("lora_", "use_rslora")) and value != each.default:
                raise UserError(
                    f"{each.name}={value} has no effect without use_peft=true; set that too, or drop it"
                )


@dataclass(frozen=True, kw_only=True)
class Recipe(ModelKeys):
    """What a run trains on and how it is evaluated. `CTPOConfig` describes the optimisation.

    The metadata of each field holds its help text.

    Raises:
        UserError: if a task, a model or a column is unknown, or a number is out of range.
    """

    dataset: Path | None = setting(
        None, "JSONL or parquet file of training problems (see columns); unset for the task's own problems"
    )
    eval_dataset: Path | None = setting(
        None, "JSONL or parquet file of held-out problems; unset for the task's own problems"
    )
    columns: dict[str, str] | None = setting(
        None,
        "columns that hold prompt, answer, id and difficulty, e.g. {prompt: question}; unset for the usual names",
    )
    train_problems: int | None = setting(
        None, f"number of training problems drawn from the task; unset for {DEFAULT_TRAIN_PROBLEMS}"
    )
    max_prompt_length: int | None = setting(
        None,
        "training prompts of more tokens are left out; unset for as many as the model's context has room for",
    )
    mask_void_turns: Literal["none", "response", "turn"] = setting(
        "none",
        "leave out of the loss: 'response', responses with neither a tool call nor an answer; 'turn', responses whose "
        "last turn has neither",
    )
    overlong_buffer: int | None = setting(
        None,
        "number of tokens before max_completion_length over which the reward falls by 1 (DAPO's soft punishment)",
    )
    eval_problems: int = setting(1_024, "number of held-out problems, with one response each")
    eval_stderr: float = setting(
        0.015,
        "evaluations before the last draw held-out problems until the standard error of pass@1 is at most this; 0: all",
    )
    eval_every: int = setting(
        4, "rollout batches between held-out evaluations; 0 evaluates only before and after training"
    )
    rollout_batches: int | None = setting(
        None, "length of the run in rollout batches; use this or max_steps or num_train_epochs"
    )
    rollout_batch_size: int | None = setting(
        None, "number of responses decoded at once; unset for the whole rollout batch"
    )
    transcripts: int = setting(16, "number of sample transcripts written with each evaluation")
    shared: Path | None = setting(
        None, "directory in which runs of a comparison share results; set by ctpo compare"
    )
    tools: list[str] | None = setting(
        None,
        "functions that the model may call: a list of FILE.py:NAME or package.module:NAME (docs/how-to/tasks.md)",
    )

    def __post_init__(self) -> None:
        get_task(self.task, self.tools or ())
        super().__post_init__()
        for name in _COUNTS:
            at_least(name, getattr(self, name), 1)
        check_columns(self.columns, COLUMNS)
        for name in ("eval_every", "transcripts"):
            at_least(name, getattr(self, name), 0)
        if not 0 <= self.eval_stderr < 1:
            raise UserError(
                f"eval_stderr={self.eval_stderr} is out of range; use for example 0.015, or 0 for all problems"
            )


def embedded_recipe() -> dict[str, Any]:
    """The keys of the recipe that `ctpo train` runs if no recipe is given."""
    from ctpo.runs.yaml_text import parse_yaml

    text = files("ctpo.tasks.arithmetic").joinpath("train.yaml").read_text(encoding="utf-8")
    return dict(parse_yaml(text))


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys of a YAML recipe.

    Raises:
        UserError: if the file is missing, not YAML, not a mapping, or what a Python script's training wrote.
    """
    from ctpo.runs.yaml_text import read_yaml

    try:
        keys = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"recipe {path} does not exist; give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"recipe {path} cannot be read ({reason}); give a YAML file") from None
    except ValueError as error:
        raise UserError(f"recipe {path} is not YAML ({error}); correct it") from None
    if not isinstance(keys, dict):
        raise UserError(
            f"recipe {path} holds {type(keys).__name__}, not a mapping; write one `key: value` per line"
        )
    if SCRIPT in keys:
        raise UserError(f"{path} records the training of a Python script and is no recipe; run the script")
    return keys


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """The keys in words `key=value` from a command line. Values are YAML; `a.b=c` sets one entry of a mapping.

    Names that begin with `engine.` stay whole, because they are another library's (`ctpo.engines.choice`).

    Raises:
        UserError: if a word has another form.
    """
    from ctpo.runs.yaml_text import parse_yaml

    keys: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"{word!r} is not key=value; write for example learning_rate=1e-4")
        try:
            parsed = parse_yaml(value)
        except ValueError:
            parsed = value
        outer, dot, inner = name.partition(".")
        if dot and outer != ENGINE:
            keys = merge(keys, {outer: {inner: parsed}})
        else:
            keys[name] = parsed
    return keys


def merge(keys: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a recipe with the overrides applied. Mappings are merged; every other value is replaced.

    A new objective removes the `objective_kwargs` of the one before, because it may not have such knobs, and so does a
    new rollout correction. A key removes the keys that set the same thing in another way (`RIVALS`), and so do an
    objective and the settings of TRL's loss, which name one too.
    """
    merged = dict(keys)
    losses = (("objective", "objective_kwargs"), tuple(LOSS_SETTINGS))
    for one, other in (losses, losses[::-1]):
        if any(name in overrides for name in one) and not any(name in overrides for name in other):
            for name in other:
                merged.pop(name, None)
    for name, value in overrides.items():
        for rival in RIVALS.get(name, ()):
            if value is not None and rival not in overrides:
                merged.pop(rival, None)
    for name in ("objective", "rollout_correction"):
        if overrides.get(name, merged.get(name)) != merged.get(name):
            merged.pop(f"{name}_kwargs", None)
    for name, value in overrides.items():
        held = merged.get(name)
        merged[name] = {**held, **value} if isinstance(held, dict) and isinstance(value, dict) else value
    return merged


def _check_model(model: str) -> None:
    path = Path(model)
    try:
        if model in (*SHIPPED_MODELS, SMOLLM2) or any(
            (path / name).is_file() for name in ("config.json", "adapter_config.json")
        ):
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


def check_columns(columns: Mapping[str, str] | None, names: Sequence[str]) -> None:
    """Check that `columns` gives a column to some of these names.

    Raises:
        UserError: naming the first entry that does not.
    """
    for name, column in (columns or {}).items():
        if name not in names:
            raise UserError(f"columns.{name}={column} is unknown; use names of {', '.join(names)}")
        if not column:
            raise UserError(f"columns.{name} is empty; give the name of a column, or leave it out")


def at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{name}={value} is too small; use at least {least}")
