"""Problems as training data: the rows of a dataset, and whether they are enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctpo.errors import UserError
from ctpo.tasks import Problem
from ctpo.training.config.config import CTPOConfig
from ctpo.training.sampling.stream import Curriculum, solve_rates


def dataset_rows(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """The problems as rows of a training dataset.

    A column has one type there. So a text among messages becomes a message, and a number among words a text. The
    column `difficulty` is left out if no problem has one.
    """
    rows = [dict(vars(problem)) for problem in problems]
    if not all(isinstance(row["prompt"], str) for row in rows):
        for row in rows:
            text = row["prompt"]
            row["prompt"] = [{"role": "user", "content": text}] if isinstance(text, str) else list(text)
    known = [row["difficulty"] for row in rows if row["difficulty"] is not None]
    for row in rows:
        if not known:
            del row["difficulty"]
        elif row["difficulty"] is not None and any(isinstance(each, str) for each in known):
            row["difficulty"] = str(row["difficulty"])
    return rows


def check_enough(problems: Sequence[Any], config: CTPOConfig) -> None:
    """Check that the problems are enough for one rollout batch.

    Raises:
        UserError: if they are not.
    """
    needed = config.generation_batch_size // config.num_generations
    if len(problems) < needed:
        raise UserError(
            f"{len(problems)} training problems do not fill one rollout batch of {needed} prompts "
            f"(generation_batch_size={config.generation_batch_size} / num_generations={config.num_generations}); "
            "give more problems or lower generation_batch_size"
        )


def check_difficulties(problems: Sequence[Problem], config: CTPOConfig, column: str | None) -> None:
    """Check that a curriculum, if there is one, can use the difficulties of the problems.

    Args:
        problems: of the training data.
        config: of the trainer.
        column: the name of the column that the user gave; None for the usual one, which may be missing.

    Raises:
        UserError: if a difficulty is none, or no problem has one in the user's column.
    """
    if not config.curriculum:
        return
    assert not isinstance(config.curriculum, str)  # TRL parses a JSON string in its own __post_init__
    difficulties = [problem.difficulty for problem in problems]
    if column is not None and all(each is None for each in difficulties):
        raise UserError(
            f"columns.difficulty={column}: no training problem has a value there; name another column, or drop it"
        )
    try:
        solve_rates(difficulties, Curriculum.of(config.curriculum), [problem.id for problem in problems])
    except ValueError as error:
        raise UserError(f"{error}, or name another column: columns.difficulty") from None
