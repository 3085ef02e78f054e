"""Problems from the columns of a row, under the names that datasets and trainers give them.

A prompt is a text, or messages as verl and TRL have them. A reference answer is a text, a number, a truth value, or a
list of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.tasks.prompts import Prompt, checked_prompt
from ctpo.tasks.repeats import tell_repeats
from ctpo.tasks.rows import read_rows
from ctpo.tasks.task import Problem

_PROMPTS: Final = ("prompt", "problem", "question", "query", "instruction", "input", "messages")
_ANSWERS: Final = (
    *("answer", "final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth"),
    *("target", "solution"),
)
_INDEX: Final = "extra_info.index"
_IDS: Final = ("id", "unique_id", "problem_idx", "problem_id", "question_id", "uid", "uuid", _INDEX)
_DIFFICULTIES: Final = ("difficulty",)
_WHOLE: Final = 2**53
"""Below this size, a float that is a whole number was probably written as one."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a dataset that make a problem. Of several names, the first that a row has is taken.

    Capitals do not matter, nor does a space or a hyphen in place of `_`. `a.b` is the entry `b` of the column `a`.
    """

    prompt: str | Sequence[str] = _PROMPTS
    answer: str | Sequence[str] = _ANSWERS
    id: str | Sequence[str] = _IDS
    """A row without it is named by its file and line number. The index of verl's rows counts within a `data_source`."""
    difficulty: str | Sequence[str] = _DIFFICULTIES
    """A row without it is a problem of unknown difficulty. Only a curriculum asks whether a value can be used."""

    def problem(
        self, row: Mapping[str, Any], place: str, name: str, answer: Callable[[str], str] = str
    ) -> Problem:
        """The problem that a row describes.

        Args:
            row: the row's columns.
            place: where the row is, for error messages.
            name: the id of a row without one.
            answer: makes the reference answer from the text of the answer column.

        Raises:
            UserError: if a column is missing or empty, or holds what cannot be used.
        """
        return Problem(
            prompt=_prompt(row, self.prompt, place),
            answer=_reference(row, self.answer, place, answer),
            id=_identifier(row, self.id) or name,
            difficulty=difficulty_of(row, self.difficulty),
        )


def read_problems(
    path: Path, columns: Columns | None = None, answer: Callable[[str], str] = str
) -> list[Problem]:
    """Every problem of the file. A row without an id gets `<file name>:<line>`.

    Repeated prompts and ids are kept, and a warning counts them.

    Raises:
        UserError: if the file is missing or empty, or if a row lacks a prompt or an answer.
    """
    columns = columns or Columns()
    problems = [
        columns.problem(row.columns, row.place, f"{path.name}:{row.number}", answer)
        for row in read_rows(path)
    ]
    if not problems:
        raise UserError(f"dataset {path} is empty; write one JSON object with prompt and answer on each line")
    tell_repeats(f"dataset {path}", problems)
    return problems


def column_of(row: Mapping[str, Any], names: str | Sequence[str]) -> str | None:
    """The first of the columns that a row has, whether or not it holds a value; None if it has none of them."""
    places = _places(tuple(row), (names,) if isinstance(names, str) else tuple(names))
    return str(places[0][1]) if places else None


def _prompt(row: Mapping[str, Any], names: str | Sequence[str], place: str) -> Prompt:
    column, value = _column(row, names, place, "prompt")
    if isinstance(value, int | float | Decimal):
        value = _number(value)
    try:
        prompt = checked_prompt(value)
    except ValueError as error:
        raise UserError(f"{place}: {column} {error}") from None
    contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt[-1:]]
    if not contents[0].strip():
        raise UserError(f"{place}: {column} is {_short(value)}; give a non-empty text")
    return prompt


def _reference(
    row: Mapping[str, Any], names: str | Sequence[str], place: str, answer: Callable[[str], str]
) -> str:
    """The reference answer. Of a list, all entries are its parts."""
    column, value = _column(row, names, place, "answer")
    parts = value if isinstance(value, list | tuple) and value else [value]
    texts = [_answer_text(part) for part in parts]
    if None in texts:
        raise UserError(
            f"{place}: {column} is {_short(value)}; give a non-empty text, a finite number, true or false, or a list "
            "of those"
        )
    return ", ".join(answer(text) for text in texts if text is not None)


def _answer_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value if value.strip() else None
    return _number(value) if isinstance(value, int | float | Decimal) else None


def _number(value: int | float | Decimal) -> str | None:
    """A number or truth value as text, None if it is not finite. A float without decimals is written as an integer."""
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE:
        return str(int(value))
    return str(value)


def _identifier(row: Mapping[str, Any], names: str | Sequence[str]) -> str | None:
    column, value = _first(row, names)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    source = row.get("data_source")
    return f"{source}:{value}" if column == _INDEX and isinstance(source, str) else str(value)


def difficulty_of(row: Mapping[str, Any], names: str | Sequence[str] = _DIFFICULTIES) -> float | str | None:
    """What a row says about its difficulty; None for an empty cell or NaN, which say nothing.

    Args:
        row: the row's columns.
        names: of the column, as in `Columns`.
    """
    value = _first(row, names)[1]
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return None if math.isnan(value) else float(value)
    text = "" if value is None else str(value).strip()
    return text or None


def _column(row: Mapping[str, Any], names: str | Sequence[str], place: str, what: str) -> tuple[str, Any]:
    column, value = _first(row, names)
    if column is None:
        have = ", ".join(map(str, row)) or "none"
        wanted = f"{names!r}" if isinstance(names, str) else f"{what!r} or another usual name of it"
        raise UserError(
            f"{place} has no column {wanted} (it has: {have}); add it, or name another: columns in a recipe, "
            "?prompt=NAME&answer=NAME in --task"
        )
    return column, value


def _first(row: Mapping[str, Any], names: str | Sequence[str]) -> tuple[str | None, Any]:
    """The first of the columns that has a value, or else the first that is there: its name and value."""
    empty: str | None = None
    for name, column, rest in _places(tuple(row), (names,) if isinstance(names, str) else tuple(names)):
        there, value = _entry(row[column], rest)
        if there and value is not None:
            return name, value
        empty = name if there and empty is None else empty
    return empty, None


@lru_cache(maxsize=256)  # most rows of a file have the same columns
def _places(columns: tuple[Any, ...], names: tuple[str, ...]) -> tuple[tuple[str, Any, str], ...]:
    """Where the named columns may be: for each the name, the column, and what is left of the name behind a dot.

    Columns of exactly that name come first.
    """
    alike = {_plain(column): column for column in reversed(columns)}
    places: list[tuple[str, Any, str]] = []
    for known in ({column: column for column in columns}, alike):
        for name in names:
            plain = name if known is not alike else _plain(name)
            head, dot, rest = plain.partition(".")
            if plain in known:
                places.append((name, known[plain], ""))
            elif dot and head in known:
                places.append((name, known[head], rest))
    return tuple(places)


def _entry(value: Any, rest: str) -> tuple[bool, Any]:
    """Whether there is an entry with the rest of a name in the value of a column, and that entry."""
    if not rest:
        return True, value
    if not isinstance(value, Mapping):
        return False, None
    places = _places(tuple(value), (rest,))
    return _entry(value[places[0][1]], places[0][2]) if places else (False, None)


def _plain(name: Any) -> str:
    return str(name).strip().lower().replace(" ", "_").replace("-", "_")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
