"""Prompts within a length, without tokenising those that are far from it."""

from __future__ import annotations

from typing import Final

from transformers import PreTrainedTokenizerBase

from ctpo.errors import well_formed
from ctpo.rollout.chat import encode_prompt
from ctpo.tasks import Task
from ctpo.tasks.prompts import Prompt

_SLACK: Final = 16
"""Tokens by which a beginning of a text may exceed its share of the whole: the cut may split a word."""
_FIRST_LOOK: Final = 8
"""Characters per allowed token of the beginning that is tokenised first. Ordinary text has two to five."""


class LengthLimit:
    """Says of prompts whether they have at most `limit` tokens in the model's chat template.

    A token is at least one byte, so most prompts are short enough by their bytes. A long one is tokenised from its
    beginning, until that has too many tokens. So a prompt of megabytes costs no more than one of the limit's length.

    Raises:
        UserError: if the model's chat template does not fit the task.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, task: Task, limit: int) -> None:
        self._tokenizer, self._task, self._limit = tokenizer, task, limit
        self._frame = len(encode_prompt(tokenizer, task, "x")) + _SLACK
        """The tokens that the template, the system message and the examples add."""

    def allows(self, prompt: Prompt) -> bool:
        """Whether the prompt is short enough."""
        return self.ids(prompt) is not None if self._unsure(prompt) else True

    def ids(self, prompt: Prompt) -> list[int] | None:
        """The token ids of the prompt, or None if they are too many."""
        contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        if any(self._begins_too_long(text) for text in contents):
            return None
        ids = encode_prompt(self._tokenizer, self._task, prompt)
        return ids if len(ids) <= self._limit else None

    def _unsure(self, prompt: Prompt) -> bool:
        return not isinstance(prompt, str) or self._frame + len(prompt.encode()) > self._limit

    def _begins_too_long(self, text: str) -> bool:
        reach = _FIRST_LOOK * (self._limit + _SLACK)
        while reach < len(text):
            ids = self._tokenizer.encode(well_formed(text[:reach]), add_special_tokens=False)
            if len(ids) > self._limit + _SLACK:
                return True
            reach *= 4
        return False
