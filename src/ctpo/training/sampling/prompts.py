"""Leaves out training prompts that are too long, of a recipe before the model is loaded, and of a script."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from ctpo.errors import UserError
from ctpo.rollout.chat import encode_prompt, task_format
from ctpo.rollout.lengths import LengthLimit
from ctpo.tasks import Problem, Task
from ctpo.training.config.config import CTPOConfig
from ctpo.training.config.recipe import Recipe
from ctpo.training.view import SamplingView


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


class LongPromptsWarning(UserWarning):
    """Training prompts were left out because they are too long."""


def leave_out_long_prompts(
    trainer: SamplingView, limit: int, encode: Callable[[Any, Any], list[int]] | None = None
) -> Any:
    """The trainer's training data without prompts of more than `limit` tokens, its template and tools counted.

    Images and the tools of an environment are not counted. A stream is filtered while it is read.

    Args:
        trainer: whose data it is.
        limit: tokens per prompt.
        encode: returns the tokens of a prompt, given the tokenizer, where our engine samples; None where TRL does.

    Raises:
        ValueError: if no prompt is left.
        UserError: if the model's chat template does not fit the task.
    """

    def short(row: Mapping[str, Any]) -> bool:
        if encode is not None:
            return len(encode(trainer.processing_class, row["prompt"])) <= limit
        return prompt_tokens(trainer, row) <= limit

    data = trainer.train_dataset
    if isinstance(data, IterableDataset):
        return data.filter(short)
    assert isinstance(data, Dataset)
    kept = [i for i, row in enumerate(data) if short(row)]
    if not kept:
        raise ValueError(
            f"all {len(data)} training prompts have more tokens than max_prompt_length={limit}; raise it"
        )
    if len(kept) < len(data):
        warnings.warn(
            f"max_prompt_length={limit}: {len(data) - len(kept)} of {len(data)} training prompts have more tokens and "
            "are left out",
            LongPromptsWarning,
            stacklevel=3,
        )
    return data.select(kept)


def prompt_tokens(trainer: SamplingView, row: Mapping[str, Any]) -> int:
    """The number of tokens of a row's prompt where TRL makes the tokens."""
    tokenizer, prompt = trainer.processing_class, row["prompt"]
    if not is_conversational({"prompt": prompt}):
        return len(tokenizer(text=prompt)["input_ids"])
    ids = tokenizer.apply_chat_template(
        conversation=[prompt],
        tools=trainer.tools or None,
        chat_template=trainer.chat_template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **trainer.chat_template_kwargs,
    )
    return len(ids["input_ids"][0])
