"""The form of a template's own calls, learned from what it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ctpo.rollout.native.objects import ObjectCalls
from ctpo.rollout.native.written import CallReader
from ctpo.rollout.template import Message, Template

_QUESTION: Final = {"role": "user", "content": "WHAT-WAS-ASKED"}
_NAME: Final = "probe_function"
_ARGUMENTS: Final = {"probe_key": "A PROBED VALUE", "other_key": "ANOTHER VALUE"}


def learn_calls(template: Template, schemas: Sequence[Mapping[str, Any]]) -> CallReader | None:
    """Return a reader of the template's calls; None if it has none, or none that can be read here.

    The reader is tried on the template's own calls, and is returned only if it reads these.

    Args:
        schemas: the functions that the template must tell the model about.
    """
    declared = template.render([_QUESTION], tools=schemas)
    if declared is None or not all(_declares(declared, schema) for schema in schemas):
        return None
    text = _own_call(template)
    if text is None:
        return None
    for reader in (ObjectCalls("<tool_call>", "</tool_call>"),):
        if _reads(reader, text):
            return reader
    return None


def _declares(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text tells of the function, in whatever form of JSON or prose."""
    function = schema["function"]
    return function["name"] in text and all(key in text for key in function["parameters"]["properties"])


def _own_call(template: Template) -> str | None:
    """What the template writes for an assistant's message with one call, and what follows it."""
    for arguments in (_ARGUMENTS, json.dumps(_ARGUMENTS)):
        call = {"type": "function", "id": "call00000", "function": {"name": _NAME, "arguments": arguments}}
        message: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
        text = template.render([_QUESTION, message], prompt=False)
        if text is not None and _NAME in text:
            return text.rpartition(_QUESTION["content"])[2]
    return None


def _reads(reader: CallReader, text: str) -> bool:
    begin = reader.next_call(text, 0)
    if begin is None:
        return False
    calls = reader.read(text, begin)
    return len(calls) == 1 and (calls[0].name, calls[0].arguments) == (_NAME, _ARGUMENTS)
