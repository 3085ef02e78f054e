"""The tokens with which a conversation goes on after the model has ended its turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctpo.errors import UserError, well_formed
from ctpo.rollout.template import Template, plain_ids, template_ids
from ctpo.rollout.thinking import ends_thinking

# Contents of a test conversation, to be looked for in what a template makes of it.
_ASKED, _REPLIED = "WHAT-WAS-ASKED", "WHAT-WAS-REPLIED"
_BEFORE: Final = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _REPLIED}]


class Continuation:
    """What the chat template writes between the end of the model's turn and the beginning of its next one.

    The model's own tokens stay as they are, its end-of-sequence token included. Only the template's own text can become
    special tokens; the text of a special token in a message stays text.

    Args:
        template: the model's.
        conversational: whether there is a chat template to use. Otherwise the contents are appended as they are.
    """

    def __init__(self, template: Template, *, conversational: bool) -> None:
        self._template, self._conversational = template, conversational
        self._end = (self._after_reply([], prompt=False) or "").rstrip() if conversational else ""
        self._known: dict[str, list[int]] = {}

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens of these messages, up to where the model goes on.

        Raises:
            UserError: if the chat template cannot render them.
        """
        key = json.dumps(messages, sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = self._encode(messages)
        return self._known[key]

    def opens_thought(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template begins the model's turn after these messages inside of a thought."""
        return ends_thinking(self._text(messages))

    def _encode(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The template's text and the contents in turn."""
        tokenizer, text = self._template.tokenizer, self._text(messages)
        tags = [token.content for token in tokenizer.added_tokens_decoder.values()]
        ids: list[int] = []
        for message in messages:
            content = well_formed(str(message["content"]))
            before, found, after = text.partition(content)
            if found and any(tag in content for tag in tags):
                ids += template_ids(tokenizer, before) + plain_ids(tokenizer, content)
                text = after
        return ids + template_ids(tokenizer, text)

    def _text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if not self._conversational:
            return "".join(well_formed(str(message["content"])) for message in messages)
        text = self._after_reply(messages, prompt=True)
        if text is None:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise UserError(
                f"the model's chat template cannot go on with these messages of the environment (roles: {roles}); "
                "return one user message"
            )
        return text.removeprefix(self._end)

    def _after_reply(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool) -> str | None:
        """What the template writes after an assistant's message that these messages follow; None if it refuses."""
        text = self._template.render([*_BEFORE, *map(dict, messages)], prompt=prompt)
        return text.rpartition(_REPLIED)[2] if text is not None and _REPLIED in text else None
