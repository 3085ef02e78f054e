"""Problems from a JSONL file: one JSON object a line, with a prompt and an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctpo.errors import UserError
from ctpo.tasks.task import Problem

COLUMNS = ("prompt", "answer")


def read_problems(path: Path) -> list[Problem]:
    """Read every problem of the file; ids are `<file name>:<line>` unless the rows carry an `id`.

    Raises:
        UserError: if the file is missing or empty, or a line is not an object with both columns, both non-empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"dataset {path} does not exist; give the path of a JSONL file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"dataset {path} cannot be read ({error}); give a JSONL file in UTF-8") from None
    problems = [_problem(path, number, line) for number, line in enumerate(text.splitlines(), start=1)]
    if not problems:
        raise UserError(
            f"dataset {path} is empty; it needs one JSON object with {' and '.join(COLUMNS)} a line"
        )
    return problems


def _problem(path: Path, number: int, line: str) -> Problem:
    row = _parse(path, number, line)
    for column in COLUMNS:
        value = row.get(column)
        if column not in row:
            have = ", ".join(map(str, row)) or "none"
            raise UserError(f"dataset {path} line {number} has no column {column!r} (it has: {have}); add it")
        if not isinstance(value, (str, int, float)) or isinstance(value, bool) or not str(value).strip():
            raise UserError(
                f"dataset {path} line {number}: {column} is {value!r}; give a non-empty string or number"
            )
    return Problem(
        prompt=str(row["prompt"]),
        answer=str(row["answer"]),
        id=str(row.get("id", f"{path.name}:{number}")),
    )


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        shown = line if len(line) <= 60 else line[:57] + "..."
        raise UserError(
            f"dataset {path} line {number} is not JSON ({error.msg}): {shown!r}; mend or remove it"
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"dataset {path} line {number} is {type(row).__name__}, not an object; write {{...}}")
    return row
