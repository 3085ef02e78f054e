"""The form of a template's own calls, learned from what the template writes.

A template is given small conversations in which an assistant calls functions with names and arguments that occur
nowhere else. What stands between those is the form. A form counts only if its reader reads back the very calls that
the template wrote, one alone and several together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final

from ctpo.rollout.native.named import NamedCalls
from ctpo.rollout.native.objects import ObjectCalls
from ctpo.rollout.native.parsed import ParsedCalls
from ctpo.rollout.native.python_calls import PythonCalls
from ctpo.rollout.native.tagged import TaggedCalls
from ctpo.rollout.native.written import CallReader, flexible, json_value
from ctpo.rollout.template import Message, Template
from ctpo.rollout.thinking import after_thoughts
from ctpo.tasks.calls import Unusable

_QUESTION: Final = {"role": "user", "content": "WHAT-WAS-ASKED"}
_TEXT: Final = "WHAT-WAS-WRITTEN"
_NAMES: Final = ("probed_function", "tested_function")
_KEYS: Final = ("a_probed_key", "b_tested_key")
_VALUES: Final = ("a probed value", "a tested value")
_ARGUMENTS: Final = dict(zip(_KEYS, _VALUES, strict=True))
_ID: Final = "call0000{}"
_DESCRIBED: Final = (
    ObjectCalls("<tool_call>", "</tool_call>"),
    ObjectCalls("<|tool_call|>", ""),
    PythonCalls("<|tool_call_start|>", "<|tool_call_end|>"),
)
"""Forms of templates that write no calls themselves. The prompt, or a token for it, shows the opening marker."""


def learn_calls(template: Template) -> CallReader | None:
    """Return a reader of the template's calls; None if it has none, or none that can be read here.

    Args:
        template: with the functions that it has to tell the model about.
    """
    declared = template.render([_QUESTION])
    if declared is None or not all(_declares(declared, schema) for schema in template.tools):
        return None
    written = _Written.of(template)
    if written is None:
        own = template.tokenizer.get_added_vocab()
        return next((each for each in _DESCRIBED if each.open in declared or each.open in own), None)
    # Ours come first where both read the template's calls: they say what is wrong with a call, in linear time.
    parsed = ParsedCalls.of(template.tokenizer, template.tools)
    candidates = [*_candidates(written), *([] if parsed is None else [parsed])]
    readers = (reader for reader in candidates if written.is_read_by(reader))
    return next((reader for reader in readers if _reads_declared(reader, template)), None)


def _declares(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether a text tells of the function and its arguments, in whatever form."""
    function = schema["function"]
    keys = (function.get("parameters") or {}).get("properties") or {}
    return function["name"] in text and all(key in text for key in keys)


def _reads_declared(reader: CallReader, template: Template) -> bool:
    """Whether the reader reads calls of the declared functions. Some templates write those of Python differently."""
    for schema in template.tools:
        function = schema["function"]
        properties = (function.get("parameters") or {}).get("properties") or {}
        texts = [key for key, value in properties.items() if value.get("type") == "string"]
        arguments = dict.fromkeys(texts, _VALUES[0])
        turns = [_turn(template, [function["name"]], arguments, as_text) for as_text in (False, True)]
        read = [_read(reader, turn) for turn in turns if turn is not None]
        if texts and [(function["name"], arguments)] not in read:
            return False
    return True


class _Written:
    """What a template writes for an assistant's turn with one call, and with two."""

    def __init__(self, one: str, two: str | None) -> None:
        self.one = one
        self.two = two

    @staticmethod
    def of(template: Template) -> _Written | None:
        """The texts of a template that writes calls; None if it does not."""
        for as_text in (False, True):
            one = _turn(template, _NAMES[:1], _ARGUMENTS, as_text)
            if one is not None and all(each in one for each in (_NAMES[0], *_KEYS, *_VALUES)):
                two = _turn(template, _NAMES, _ARGUMENTS, as_text)
                both = two is not None and all(name in two for name in _NAMES)
                return _Written(one, two if both else None)
        return None

    def is_read_by(self, reader: CallReader) -> bool:
        """Whether the reader reads these calls, and no others."""
        turns = [(self.one, _NAMES[:1]), *([(self.two, _NAMES)] if self.two is not None else [])]
        return all(_read(reader, text) == [(name, _ARGUMENTS) for name in names] for text, names in turns)


def _read(reader: CallReader, text: str) -> list[tuple[Any, Any]]:
    calls: list[tuple[Any, Any]] = []
    place: int | None = reader.next_call(text, 0)
    while place is not None:
        found = reader.read(text, place)
        calls += [(each.name, each.error or each.arguments) for each in found]
        place = reader.next_call(text, max(found[-1].end, place + 1))
    return calls


def _turn(
    template: Template, names: Sequence[str], arguments: Mapping[str, str], as_text: bool
) -> str | None:
    """The assistant's turn with a call of each function, from where the model begins to write, without its ending."""
    given = json.dumps(arguments) if as_text else dict(arguments)
    calls = [
        {"type": "function", "id": _ID.format(i), "function": {"name": name, "arguments": given}}
        for i, name in enumerate(names)
    ]
    message: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    whole = _after_question(template.render([_QUESTION, message], prompt=False))
    prompt = _after_question(template.render([_QUESTION]))
    if whole is None or prompt is None:
        return None
    turn = whole[len(_common(prompt, whole)) :]
    lead = turn[: max(turn.find(names[0]), 0)]
    eos = template.tokenizer.eos_token
    if eos and eos in lead:  # a message of its own for each call, which the model cannot begin
        return None
    header = _pieces(prompt)[-1].strip() if prompt else ""
    turn = turn[max(after_thoughts(lead), lead.rfind(header) + len(header) if header in lead else 0) :]
    plain = template.render([_QUESTION, {"role": "assistant", "content": _TEXT}], prompt=False)
    ending = "" if plain is None else plain.rpartition(_TEXT)[2].strip()
    return turn.rstrip().removesuffix(ending or "\0").rstrip()


def _after_question(text: str | None) -> str | None:
    return None if text is None else text.rpartition(_QUESTION["content"])[2]


def _candidates(written: _Written) -> Iterator[CallReader]:
    """The readers that fit what is written, the stricter ones first."""
    for form in (_objects, _named, _tagged, _python):
        reader = form(written)
        if reader is not None:
            yield reader


def _objects(written: _Written) -> CallReader | None:
    text = written.one
    name = text.find(_NAMES[0])
    for match in re.finditer(r"[\[{]", text[:name]):
        try:
            _, end = json_value(text, match.start())
        except Unusable:
            continue
        if end > name:
            opening, close = text[: match.start()].strip(), _first_piece(text[end:])
            return ObjectCalls(opening, close)
    return None


def _named(written: _Written) -> CallReader | None:
    text = written.one
    name = text.find(_NAMES[0])
    begin = text.find("{", name)
    before, between = text[:name], text[name + len(_NAMES[0]) : begin]
    if begin < 0 or not before.strip():
        return None
    if written.two is not None:
        before = _last_pieces(before, written.two[: written.two.find(_NAMES[1])])
    quote = None
    try:
        value, end = json_value(text, begin)
    except Unusable:
        value, end = None, text.rfind("}") + 1
        quote = text[text.find(_KEYS[0]) + len(_KEYS[0]) + 1 : text.find(_VALUES[0])].strip()
    if quote is None and value != _ARGUMENTS:
        return None
    if quote == "":
        return None
    if before.rstrip().endswith("to=functions."):  # gpt-oss itself writes more here than its template does
        return NamedCalls(flexible(before), r"(?![\w.:/-])[^{}\n]{0,80}?<\|message\|>", "")
    pattern = re.sub(r"\d+", r"\\d+", flexible(between))  # a number may count the calls
    pattern = pattern.replace(re.sub(r"\d+", r"\\d+", _ID.format(0)), r"(?P<id>[\w.:-]{1,64})")
    return NamedCalls(flexible(before), pattern, _first_piece(text[end:]), quote)


def _tagged(written: _Written) -> CallReader | None:
    text = written.one
    first, second = (text.find(value) for value in _VALUES)
    places = [text.rfind(_NAMES[0], 0, first), text.find(_KEYS[0]), first, text.find(_KEYS[1]), second]
    if min(places) < 0 or places != sorted(places):
        return None
    lengths = [len(each) for each in (_NAMES[0], _KEYS[0], _VALUES[0], _KEYS[1], _VALUES[1])]
    ends = [place + length for place, length in zip(places, lengths, strict=True)]
    name_end, key_end, between, _ = (text[ends[i] : places[i + 1]] for i in range(4))
    value_end = "".join(_shared(_pieces(between), _pieces(text[ends[4] :])))
    key_open = between.removeprefix(value_end)
    before = _pieces(text[: places[0]])
    closes = [each for each in _pieces(text[ends[4] :].removeprefix(value_end)) if each.strip()]
    if not (before and key_open.strip() and value_end.strip() and key_end.strip() and closes):
        return None
    if not name_end.endswith(key_open):
        return None
    return TaggedCalls(
        before=flexible(before[-1]),
        name_end=flexible(name_end.removesuffix(key_open)),
        key_open=flexible(key_open),
        key_end=_any_attributes(flexible(key_end)),
        value_end=flexible(value_end),
        closes=tuple(flexible(each) for each in closes),
        lines=key_end.endswith("\n") and value_end.startswith("\n"),
    )


def _python(written: _Written) -> CallReader | None:
    match = re.search(rf"\[?{_NAMES[0]}\(", written.one)
    if match is None:
        return None
    opening, close = written.one[: match.start()].strip(), written.one.rpartition(")")[2].strip()
    return PythonCalls(opening, close.removeprefix("]").strip()) if opening else None


def _any_attributes(pattern: str) -> str:
    """The pattern with any values in place of those of attributes, such as `string="true"`."""
    return re.sub(r'="[^"]*"', r'="[^"]*"', pattern)


def _pieces(text: str) -> list[str]:
    """The text cut before every mark that opens a tag."""
    return [piece for piece in re.split(r"(?=[<\[])", text) if piece]


def _first_piece(text: str) -> str:
    pieces = [piece.strip() for piece in _pieces(text) if piece.strip()]
    return pieces[0] if pieces else ""


def _shared(one: list[str], other: list[str]) -> list[str]:
    """The pieces with which both begin. Their last white space may differ."""
    pairs = takewhile(lambda pair: pair[0].strip() == pair[1].strip(), zip(one, other, strict=False))
    return [a if len(a) <= len(b) else b for a, b in pairs]


def _last_pieces(one: str, other: str) -> str:
    """The pieces with which both end."""
    pairs = takewhile(
        lambda pair: pair[0].strip() == pair[1].strip(),
        zip(reversed(_pieces(one)), reversed(_pieces(other)), strict=False),
    )
    return "".join(reversed([a for a, _ in pairs])) or one


def _common(one: str, other: str) -> str:
    """What both begin with, up to the end of a tag or a line."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if length is None:
        return one[: min(len(one), len(other))]
    shared = one[:length]
    return shared[: max(shared.rfind(each) for each in ">]\n") + 1]
