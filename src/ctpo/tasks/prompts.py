"""Prompts: a text that the model continues, or the messages of a conversation that it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctpo.errors import well_formed

Message = Mapping[str, str]
"""One message: its `role` and its `content`."""
Prompt = str | tuple[Message, ...]

ROLES: Final = ("system", "user", "assistant", "tool")
_CALLS: Final = ("tool_calls", "function_call")
HOW_TO_CALL: Final = "{how_to_call}"
"""What a system message may hold in place of the sentences that say how tools are called."""


def checked_prompt(value: Any) -> Prompt:
    """The prompt, with messages as a tuple of `{"role": …, "content": …}` and without unpaired surrogates.

    Other keys of a message are left out. A content may be a list of text parts, which are joined.

    Raises:
        ValueError: if it is neither text nor a conversation that a model can answer. A conversation ends with a
            message of the user.
    """
    if isinstance(value, str):
        return well_formed(value)
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
        raise ValueError(f"is {_short(value)}; give a text or a list of messages")
    messages = tuple(_message(each, number) for number, each in enumerate(value, start=1))
    if not messages:
        raise ValueError("has no messages; give at least one of the user")
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"ends with a message of role {messages[-1]['role']!r}; a prompt ends with one of the user, "
            "which the model answers"
        )
    return messages


def placed(system: str, sentences: str) -> str:
    """The system message with these sentences where it has `HOW_TO_CALL`, and without that if there are none.

    Example:
        placed("Think. {how_to_call} Be brief.", "")  # "Think. Be brief."
    """
    if sentences:
        return system.replace(HOW_TO_CALL, sentences)
    return (
        system.replace(f"{HOW_TO_CALL} ", "").replace(HOW_TO_CALL, "").rstrip()
        if HOW_TO_CALL in system
        else system
    )


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one text for people: the messages one below the other, each after its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{each['role']}: {each['content']}" for each in prompt)


def prompt_key(prompt: Prompt) -> str:
    """The prompt as one string, which is another one for every other prompt."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def asked(prompt: Prompt) -> str:
    """What the user asks: the text, or the contents of the user's messages."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(each["content"] for each in prompt if each["role"] == "user")


def _message(value: Any, number: int) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"has {_short(value)} as message {number}; write {{'role': …, 'content': …}}")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise ValueError(f"has message {number} with the role {_short(role)}; use one of {', '.join(ROLES)}")
    for name in _CALLS:
        if value.get(name):
            raise ValueError(
                f"has message {number} with {name}, which a prompt cannot have; write the call into its content"
            )
    return {"role": role, "content": well_formed(_content(content, number))}


def _content(value: Any, number: int) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray) else [value]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"has message {number} with the content {_short(value)}; only text can be used")
    return "".join(text for text in texts if isinstance(text, str))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
