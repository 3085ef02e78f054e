"""The keys of `ctpo warm-up`: a recipe of its own, checked before torch is imported."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.runs.command import KEY, WARM_UP, check_command
from ctpo.runs.directory import RunDirectory
from ctpo.tasks import get_task
from ctpo.training.config.launch import DDP_TIMEOUT
from ctpo.training.config.recipe import ModelKeys, at_least, check_columns, merge, setting
from ctpo.training.config.settings import OPTIMIZER_RANGES, checked_value, one_line_errors
from ctpo.training.config.sources import sft_fields

if TYPE_CHECKING:
    from trl import SFTConfig

COLUMNS: Final = ("prompt", "solution", "answer", "id")
SETTINGS: Final = (
    *("output_dir", "seed", "max_length", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *(
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
    ),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "optim_args"),
    *("bf16", "use_cpu", "gradient_checkpointing", "save_steps", "save_total_limit", "report_to", "run_name"),
    "ddp_timeout",
)
"""The settings of TRL's SFTConfig that a recipe may have. The others prepare data or are decided by the run."""
MAY_CHANGE: Final = {
    "output_dir",
    "eval_every",
    "save_steps",
    "save_total_limit",
    "threads",
    "report_to",
    "run_name",
    "ddp_timeout",
}
"""Keys that may change when a warm-up is resumed."""
_OWN_DEFAULTS: Final[Mapping[str, Any]] = {
    "report_to": "none",
    "gradient_checkpointing": False,
    "bf16": False,
    "seed": 42,
    "learning_rate": 2e-5,
    "max_length": 1024,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "ddp_timeout": DDP_TIMEOUT,
}
_RANGES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    **OPTIMIZER_RANGES,
    "learning_rate": (lambda value: 0 <= value < 1, "0 or more and less than 1"),
    "seed": (lambda value: 0 <= value < 2**32, "0 to 4294967295"),
    **dict.fromkeys(
        ("max_length", "per_device_train_batch_size", "gradient_accumulation_steps"),
        (lambda value: value >= 1, "at least 1"),
    ),
    "ddp_timeout": (lambda value: value >= 1, "at least 1 second"),
}


@dataclass(frozen=True, kw_only=True)
class WarmUpRecipe(ModelKeys):
    """What a warm-up imitates. TRL's SFTConfig describes the optimisation.

    The metadata of each field holds its help text.

    Raises:
        UserError: if a task, a model or a column is unknown, or a number is out of range.
    """

    dataset: Path | None = setting(
        None, "JSONL or parquet file of worked solutions; unset for the training split of the task's own data"
    )
    columns: dict[str, str] | None = setting(
        None,
        "columns that hold prompt, solution, answer and id, e.g. {solution: rationale}; unset for the usual names",
    )
    chat_template_kwargs: dict[str, Any] | None = setting(
        None, "arguments of the model's chat template, as in `ctpo train`, e.g. {enable_thinking: false}"
    )
    answer_line: str | None = setting(
        None,
        "the last line of a response; {answer} is what the last program printed; unset for \\boxed{{answer}} where the "
        "task's prompt asks for a box, and #### {answer} elsewhere",
    )
    train_rows: int | None = setting(None, "number of solutions that are used at most; unset for all")
    heldout_rows: int = setting(
        128, "rows that are not trained on and measure the loss; at most a tenth of all"
    )
    eval_every: int = setting(
        50, "optimizer steps between measurements of the held-out loss; 0 for the ends alone"
    )
    max_tokens_per_micro_batch: int | None = setting(
        None,
        "largest number of tokens that go through the model at once; unset for a choice by the model; 0: no limit",
    )
    compute_dtype: str = setting(
        "auto", "matrix products on a CPU: float32, bfloat16, or auto for what was measured to be faster"
    )

    def __post_init__(self) -> None:
        task = get_task(self.task)
        super().__post_init__()
        if task.tool is None:
            raise UserError(
                f"task={self.task} has no Python tool, whose programs a warm-up would show; use another"
            )
        for name in ("train_rows", "max_tokens_per_micro_batch"):
            at_least(name, getattr(self, name), int(name == "train_rows"))
        for name in ("heldout_rows", "eval_every"):
            at_least(name, getattr(self, name), 0)
        check_columns(self.columns, COLUMNS)
        if self.answer_line is not None and self.answer_line.count("{answer}") != 1:
            raise UserError(
                f"answer_line={self.answer_line!r} must hold {{answer}} once, where the printed value stands"
            )
        if self.compute_dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"compute_dtype={self.compute_dtype!r} is unknown; use auto, float32 or bfloat16")


def check(keys: Mapping[str, Any]) -> tuple[WarmUpRecipe, dict[str, Any]]:
    """The recipe, and the settings of SFTConfig, without importing torch or TRL.

    Raises:
        UserError: for the first key that is unknown, of a wrong type, out of range, or in conflict with another.
    """
    hints, settings = get_type_hints(WarmUpRecipe), sft_fields()
    own = {each.name for each in fields(WarmUpRecipe)}
    ours: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name, value in keys.items():
        if name == KEY:  # the command line has looked at it
            continue
        if name in own:
            ours[name] = checked_value(name, value, hints[name])
        elif name in SETTINGS:
            given[name] = checked_value(name, value, settings[name].type)
        else:
            near = difflib.get_close_matches(str(name), [*own, *SETTINGS], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"see `ctpo {WARM_UP} --help`"
            raise UserError(f"unknown key {name!r}; {hint}")
    given = {**_OWN_DEFAULTS, **given}
    for name, (holds, wanted) in _RANGES.items():
        if name in given and not (given[name] is not None and holds(given[name])):
            raise UserError(f"{name}={given[name]} is out of range; use {wanted}")
    recipe = WarmUpRecipe(**ours)
    if recipe.use_peft:
        require("use_peft=true", "peft", "peft")
    return recipe, given


def resumed_keys(run: RunDirectory, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a run that is resumed, with those that may change.

    Raises:
        UserError: if the run is no warm-up, or a key cannot change.
    """
    recipe = run.read_recipe()
    check_command(recipe, run.path, WARM_UP)
    for name, value in keys.items():
        if name not in MAY_CHANGE and recipe.get(name) != value:
            raise UserError(
                f"{name}={value} cannot change when {run.path} is resumed (it is {recipe.get(name)}); start a new run"
            )
    return merge(recipe, keys)


def build(keys: Mapping[str, Any]) -> tuple[WarmUpRecipe, SFTConfig]:
    """The two configurations of a warm-up, fully checked. Imports torch and TRL.

    Raises:
        UserError: as `check` does, and for what TRL refuses.
    """
    recipe, given = check(keys)
    from trl import SFTConfig

    from ctpo.training.processes import join

    waiting: Any = SimpleNamespace(**{"use_cpu": False, "ddp_backend": None, "output_dir": None, **given})
    join(waiting)
    with one_line_errors():
        config = SFTConfig(
            **given,
            logging_steps=1,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            save_strategy="steps",
            eval_strategy="no",
            log_level_replica="error",
            ddp_find_unused_parameters=False,  # every weight takes part in every loss
        )
    return recipe, config


def resolved(keys: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain YAML values that runs the same warm-up again. The output directory is not part of it.

    Raises:
        UserError: as `check` does.
    """
    recipe, given = check(keys)
    ours = {name: str(value) if isinstance(value, Path) else value for name, value in vars(recipe).items()}
    return {
        KEY: WARM_UP,
        **ours,
        **{name: value for name, value in given.items() if name != "output_dir"},
    }
