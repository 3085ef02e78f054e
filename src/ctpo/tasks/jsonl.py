"""Problems from the columns of a JSONL or parquet file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.runs.files import read_text
from ctpo.tasks.task import Problem

_MOST_BYTES = 2**32
SUFFIXES = (".jsonl", ".json", ".parquet")
_PROMPTS = ("prompt", "problem", "question")
_ANSWERS = ("answer", "solution")
_IDS = ("id", "unique_id", "problem_idx")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a dataset that make a problem. Of several names, the first that a row has is taken."""

    prompt: str | Sequence[str] = "prompt"
    answer: str | Sequence[str] = "answer"
    id: str | Sequence[str] = "id"
    """A row without it is named by its file and line number."""

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
            UserError: if a column is missing or empty.
        """
        id_column = _column(row, self.id)
        return Problem(
            prompt=_text(row, self.prompt, place),
            answer=answer(_text(row, self.answer, place)),
            id=str(row[id_column]) if id_column is not None and row[id_column] is not None else name,
        )


ANY_COLUMNS = Columns(prompt=_PROMPTS, answer=_ANSWERS, id=_IDS)
"""The column names of mathematics datasets."""


def read_problems(
    path: Path, columns: Columns | None = None, answer: Callable[[str], str] = str
) -> list[Problem]:
    """Every problem of the file. A row without an id gets `<file name>:<line>`.

    Raises:
        UserError: if the file is missing or empty, or if a row lacks a prompt or an answer.
    """
    columns = columns or Columns()
    rows = _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
    problems = [
        columns.problem(row, f"dataset {path} line {number}", f"{path.name}:{number}", answer)
        for number, row in enumerate(rows, start=1)
    ]
    if not problems:
        raise UserError(f"dataset {path} is empty; write one JSON object with prompt and answer on each line")
    return problems


def _column(row: Mapping[str, Any], names: str | Sequence[str]) -> str | None:
    return next((name for name in ([names] if isinstance(names, str) else names) if name in row), None)


def _text(row: Mapping[str, Any], names: str | Sequence[str], place: str) -> str:
    column = _column(row, names)
    if column is None:
        have = ", ".join(map(str, row)) or "none"
        wanted = repr(names) if isinstance(names, str) else " or ".join(map(repr, names))
        raise UserError(
            f"{place} has no column {wanted} (it has: {have}); add it, or name another: columns in a recipe, "
            "?prompt=NAME&answer=NAME in --task"
        )
    value = row[column]
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) or not str(value).strip():
        raise UserError(f"{place}: {column} is {value!r}; give a non-empty string or number")
    return str(value)


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    try:
        text = read_text(path, _MOST_BYTES)
    except FileNotFoundError:
        raise UserError(f"dataset {path} does not exist; give the path of a JSONL file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"dataset {path} cannot be read ({reason}); give a JSONL file in UTF-8") from None
    # Not splitlines(): JSON strings may contain U+2028 and similar characters.
    lines = text.removesuffix("\n").split("\n") if text else []
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        shown = line if len(line) <= 60 else line[:57] + "..."
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)[:80]
        raise UserError(
            f"dataset {path} line {number} is not JSON ({reason}): {shown!r}; correct or remove it"
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"dataset {path} line {number} is {type(row).__name__}, not an object; write {{...}}")
    return row


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    if not os.path.isfile(path):
        raise UserError(f"dataset {path} does not exist; give the path of a parquet file")
    require(f"dataset {path}", "train", "pyarrow")
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:  # damaged values make pyarrow raise much beside its own errors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"dataset {path} cannot be read as parquet ({reason}); give a parquet file") from None
    return rows
