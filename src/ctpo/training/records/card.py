"""The model card of a run: what was trained, how, with what result, and how to repeat it.

Names and commands come from whoever made the run. They stand in code spans and code blocks, on one line, so that no
name becomes markup.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from ctpo.errors import one_line
from ctpo.objectives.presets import preset_description
from ctpo.runs.atomic import write_text
from ctpo.runs.directory import RunDirectory
from ctpo.runs.reader import number
from ctpo.runs.script import KEY
from ctpo.training.config.config import CTPOConfig

CARD: Final = "README.md"
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_FIGURES: Final = {
    "heldout_pass@1": "held-out pass@1",
    "heldout_reward": "held-out reward",
    "heldout_problems": "held-out problems",
    "reward": "training reward",
    "response_tokens": "tokens per response",
    "clip_fraction": "share of clipped tokens",
    "log_ratio_std": "spread of the log ratio",
}
"""Figures of records that the card shows, first and last."""
_SETTINGS: Final = (
    *("anchor", "advantages", "rollout_correction", "behaviour_lag", "beta", "num_iterations", "temperature"),
    *("max_completion_length", "learning_rate", "max_grad_norm", "optim", "seed"),
)


def model_card(
    args: CTPOConfig,
    recipe: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
    *,
    name: str,
    parameters: int,
    tags: Sequence[str] = (),
    dataset: str | None = None,
) -> str:
    """The card as Markdown with the metadata of the Hugging Face hub.

    Args:
        args: the trainer's settings.
        recipe: the content of `config.yaml`.
        records: the lines of `metrics.jsonl` so far.
        environment: the content of `environment.json`.
        name: of the model.
        parameters: number of its parameters.
        tags: of the hub.
        dataset: a dataset of the hub that it was trained on.
    """
    base = str(recipe.get("model", ""))
    metadata: dict[str, Any] = {"library_name": "transformers", "model_name": one_line(name)}
    if _HUB_ID.fullmatch(base) and not Path(base).is_dir():
        metadata["base_model"] = base
    if dataset is not None:
        metadata["datasets"] = [one_line(dataset)]
    metadata["tags"] = sorted({"generated_from_trainer", *map(one_line, tags)})
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# Model card of {_code(name)}",
        "A language model trained by reinforcement learning with "
        f"[CTPO](https://arxiv.org/abs/2605.07331)'s trainer, objective {_code(args.objective)}.",
        "## What was trained",
        _table(("", ""), [("model", f"{_code(base)}, {parameters:,} parameters"), *_data(recipe)]),
        "## How",
        _block(f"{args.objective}: {preset_description(str(args.objective))}"),
        _table(("setting", "value"), _settings(args)),
        "## Result",
        _result(records),
        "## How to repeat it",
        _repeat(recipe),
        _versions(environment),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def add_curve(run: RunDirectory) -> None:
    """Put the picture of a run's learning curve beside its model, and show it in the card."""
    card = run.model / CARD
    if run.curve.is_file() and card.is_file():
        shutil.copyfile(run.curve, run.model / run.curve.name)
        text = card.read_text(encoding="utf-8")
        picture = f"![Learning curve of this run]({run.curve.name})\n\n## How to repeat it\n"
        write_text(card, text.replace("## How to repeat it\n", picture, 1))


def _data(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, _code(recipe[name])) for name in ("task", "dataset") if recipe.get(name)]
    data = recipe.get("train_data")
    if isinstance(data, Mapping):
        rows.append(("training data", ", ".join(f"{key} {_code(value)}" for key, value in data.items())))
    if recipe.get("rewards"):
        rows.append(("rewards", ", ".join(_code(each) for each in recipe["rewards"])))
    return rows


def _settings(args: CTPOConfig) -> list[tuple[str, str]]:
    prompts = args.generation_batch_size // args.num_generations
    knobs = ", ".join(f"{name} {value}" for name, value in args.objective_settings().items())
    return [
        ("knobs of the objective", _code(knobs)),
        (
            "rollout batch",
            f"{args.generation_batch_size} responses, {args.num_generations} to each of {prompts} prompts",
        ),
        ("updates per rollout batch", str(args.updates_per_rollout_batch)),
        ("learning rate schedule", _code(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))),
        *((name, _code(getattr(getattr(args, name), "value", getattr(args, name)))) for name in _SETTINGS),
    ]


def _result(records: Sequence[Mapping[str, Any]]) -> str:
    if not records:
        return "There are no records of this training."
    rows = []
    for name, shown in _FIGURES.items():
        known = [(number(each.get("batch")), number(each.get(name))) for each in records]
        known = [(batch, value) for batch, value in known if batch is not None and value is not None]
        if known:
            rows.append(
                (shown, *(f"{value:.4g} (batch {batch:.0f})" for batch, value in (known[0], known[-1])))
            )
    batch, step, seconds = (number(records[-1].get(name)) or 0.0 for name in ("batch", "step", "seconds"))
    length = f"{batch:.0f} rollout batches, {step:.0f} updates, {seconds / 60:.1f} minutes."
    return f"{length}\n\n{_table(('figure', 'first', 'last'), rows)}" if rows else length


def _repeat(recipe: Mapping[str, Any]) -> str:
    script = recipe.get(KEY)
    if not isinstance(script, Mapping):
        command = _block("ctpo train config.yaml output_dir=runs/again")
        return f"With the recipe `config.yaml` of the run's directory:\n\n{command}"
    words = script.get("command") or []
    if not words:
        return "It was trained at a prompt or in a notebook."
    command = _block(shlex.join(["python", *map(str, words)]))
    return f"With the script, in the directory {_code(script.get('directory'))}:\n\n{command}"


def _versions(environment: Mapping[str, Any]) -> str:
    packages = environment.get("packages") or {}
    versions = {"ctpo": environment.get("ctpo"), "python": environment.get("python"), **packages}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    processes = environment.get("processes", 1)
    return f"Versions: {_code(shown)}, {processes} process{'es' if processes != 1 else ''}."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(value: Any) -> str:
    """A value in a code span, where nothing is markup. A table needs its bars escaped."""
    text = one_line(str(value)).replace("`", "'").replace("|", "\\|").strip()
    return f"`{text}`" if text else "unnamed"


def _block(text: str) -> str:
    lines = [one_line(line).replace("```", "'''") for line in text.splitlines()]
    return "\n".join(["```text", *lines, "```"])
