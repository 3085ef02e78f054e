"""What a model's chat template makes of a conversation, as text and as tokens.

A template is a program that came with the model. It may refuse any conversation, in any way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from ctpo.errors import well_formed
from ctpo.rollout.thinking import ends_thinking

Message = dict[str, Any]
_OTHER_NAME = "xml_tools"
"""The name under which the template of SmolLM3 takes `tools`."""
_QUESTION: Message = {"role": "user", "content": "WHAT-WAS-ASKED"}


@dataclass(frozen=True)
class Template:
    """A tokenizer's chat template with what every rendering gets.

    Args:
        tokenizer: whose template it is.
        options: keyword arguments, such as `{"enable_thinking": False}`, which some templates know.
        tools: the declarations of functions that the template tells the model about.
    """

    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()

    def render(self, messages: Sequence[Message], *, prompt: bool = True) -> str | None:
        """Return the conversation as text, or None if there is no template or it refuses.

        Args:
            prompt: whether the text goes on to where the model writes.
        """
        if not self.tokenizer.chat_template:
            return None
        declared = [dict(each) for each in self.tools]
        other = bool(declared) and _OTHER_NAME in str(self.tokenizer.chat_template)
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=declared or None,
                tokenize=False,
                add_generation_prompt=prompt,
                **{**({_OTHER_NAME: declared} if other else {}), **self.options},
            )
        except Exception:  # a template may raise anything to refuse
            return None
        return text if isinstance(text, str) else None

    def begins_thinking(self) -> bool:
        """Return whether the model's text begins in the middle of thinking, which the template has opened."""
        text = self.render([_QUESTION])
        return text is not None and ends_thinking(text.rpartition(_QUESTION["content"])[2])


def template_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a template's text. Special tokens in it are special tokens."""
    ids: list[int] = tokenizer.encode(well_formed(text), add_special_tokens=False) if text else []
    return ids


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text from outside, such as a tool's result. The text of a special token stays text.

    The same holds for tokens that a tokenizer has for its tags and does not call special, such as `</tool_response>`.
    """
    if not text:
        return []
    tags = [token.content for token in tokenizer.added_tokens_decoder.values() if len(token.content) > 1]
    pieces = [well_formed(text)]
    if any(tag in pieces[0] for tag in tags):  # each is cut in two, so that no piece holds a whole one
        cuts = re.compile("|".join(f"(?<={re.escape(tag[0])})(?={re.escape(tag[1:])})" for tag in tags))
        pieces = cuts.split(pieces[0])
    return [
        int(token)
        for piece in pieces
        if piece
        for token in tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ]
