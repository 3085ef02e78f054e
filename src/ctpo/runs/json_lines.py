"""Reading JSON Lines files, of which any line may be damaged and the last one cut short."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctpo.runs.files import MOST_BYTES, read_bytes


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a JSON Lines file."""

    number: int
    """Counted from 1, blank lines included."""
    record: dict[str, Any] | None
    """The JSON object; None if the line does not hold one."""
    complete: bool
    """Whether a line feed ends the line. A line without one was probably cut short by a kill."""


def read_json_lines(path: Path, most: int = MOST_BYTES) -> list[Line]:
    """Return the lines of a file that are not blank, in order.

    Raises:
        OSError: if the file cannot be read, is no regular file, or has more than `most` bytes.
    """
    # Not splitlines(): the text of a response may hold U+2028 and other characters that it takes for line ends.
    texts = read_bytes(path, most).split(b"\n")
    return [
        Line(number=number, record=parse_record(text), complete=number < len(texts))
        for number, text in enumerate(texts, start=1)
        if text.strip()
    ]


def parse_record(text: bytes) -> dict[str, Any] | None:
    """Return the JSON object of one line; None if it holds none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
