"""The tokens with which a conversation goes on after the model has ended its turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctpo.errors import UserError, well_formed
from ctpo.rollout.template import Template, plain_ids, template_ids
from ctpo.rollout.thinking import ends_thinking

# Contents of a test conversation, to be looked for in what a template makes of it.
_ASKED, _REPLIED, _SAID = "WHAT-WAS-ASKED", "WHAT-WAS-REPLIED", "WHAT-WAS-SAID-{}-"
_BEFORE: Final = [{"role": "user", "content": _ASKED}, {"role": "assistant", "content": _REPLIED}]
_REMEMBERED: Final = 1024
"""Messages whose tokens are kept."""


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
            if len(self._known) >= _REMEMBERED:  # an environment may never say the same again
                self._known.clear()
            self._known[key] = self._encode(messages)
        return self._known[key]

    def opens_thought(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the template begins the model's turn after these messages inside of a thought."""
        frames = self._frames(messages)  # a message that mentions a thought opens none
        return ends_thinking(self._text(messages) if frames is None else frames[-1])

    def _encode(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        tokenizer = self._template.tokenizer
        tags = [token.content for token in tokenizer.added_tokens_decoder.values()]
        contents = [well_formed(str(message["content"])) for message in messages]
        text = self._text(messages)
        if not any(tag in content for tag in tags for content in contents):
            return template_ids(tokenizer, text)
        frames = self._frames(messages)
        if frames is None:  # what is the template's own cannot be known
            return plain_ids(tokenizer, text)
        if _joined(frames, contents) != text:
            contents = [content.strip() for content in contents]  # as most templates do that change contents
        ids: list[int] = []
        for frame, content in zip(frames, [*contents, ""], strict=True):
            ids += template_ids(tokenizer, frame) + plain_ids(tokenizer, content)
        return ids

    def _frames(self, messages: Sequence[Mapping[str, Any]]) -> list[str] | None:
        """The template's own texts before, between and after the contents; None if it does not keep their order."""
        probes = [_SAID.format(i) for i in range(len(messages))]
        rest = self._text([{**each, "content": probe} for each, probe in zip(messages, probes, strict=True)])
        frames: list[str] = []
        for probe in probes:
            if rest.count(probe) != 1:
                return None
            frame, _, rest = rest.partition(probe)
            frames.append(frame)
        return [*frames, rest]

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


def _joined(frames: Sequence[str], contents: Sequence[str]) -> str:
    return "".join(a + b for a, b in zip(frames, [*contents, ""], strict=True))
