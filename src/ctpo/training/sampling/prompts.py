"""Leaves out training prompts that are too long, before the model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError
from ctpo.rollout.chat import encode_prompt, task_format
from ctpo.rollout.lengths import LengthLimit
from ctpo.tasks import Problem, Task
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.recipe import Recipe


def leave_out_long(
    problems: Sequence[Problem],
    recipe: Recipe,
    config: CTPOConfig,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    context: int | None,
) -> list[Problem]:
    """The problems whose prompts are short enough.

    A prompt may have at most `max_prompt_length` tokens, and at most as many as the model's context leaves beside
    `max_completion_length`.

    Args:
        context: the model's context in tokens; None if the model has no limit.

    Raises:
        UserError: if no problem is left, or if the model's chat template does not fit the task.
    """
    if task.all_tools:
        task_format(tokenizer, task)  # raises now what would otherwise fail in the first rollout
    room = None if context is None else context - config.max_completion_length
    limit = min((each for each in (recipe.max_prompt_length, room) if each is not None), default=None)
    if limit is None:
        encode_prompt(tokenizer, task, problems[0].prompt)
        return list(problems)
    within = LengthLimit(tokenizer, task, limit)
    kept = [problem for problem in problems if within.allows(problem.prompt)]
    if not kept:
        why = (
            f"max_prompt_length={limit}; raise it"
            if limit == recipe.max_prompt_length
            else f"{limit}, which is the model's context of {context} less max_completion_length="
            f"{config.max_completion_length}; lower that"
        )
        raise UserError(f"all {len(problems)} training prompts have more tokens than {why}")
    return kept
