"""`max_prompt_length` of `CTPOTrainer`: training prompts with more tokens are left out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, IterableDataset
from trl.data_utils import is_conversational

from ctpo.training.view import SamplingView


class LongPromptsWarning(UserWarning):
    """Training prompts were left out because they are too long."""


def leave_out_long_prompts(trainer: SamplingView, limit: int) -> Any:
    """The trainer's training data without prompts of more than `limit` tokens, its template and tools counted.

    Images and the tools of an environment are not counted. A stream is filtered while it is read.

    Raises:
        ValueError: if no prompt is left.
    """
    data = trainer.train_dataset
    if isinstance(data, IterableDataset):
        return data.filter(lambda row: prompt_tokens(trainer, row) <= limit)
    assert isinstance(data, Dataset)
    kept = [i for i, row in enumerate(data) if prompt_tokens(trainer, row) <= limit]
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
    """The number of tokens of a row's prompt."""
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
