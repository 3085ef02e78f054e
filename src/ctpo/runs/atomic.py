"""Writing small files so that a kill or a full disk never leaves half a file under its name.

Text may hold unpaired surrogates, which UTF-8 does not have: half of an emoji that a model or a crawler has cut. They
are written as `\\ud83d`, their escape in JSON and YAML, so that any reader of JSON reads them back.

A file is written beside its place and moved there in one rename. A reader sees the old file or the new one. Only a
file that grows by one record at a time is appended to instead; its reader must expect a last line that is cut short.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

_SURROGATES: Final = "backslashreplace"
"""The name of Python's error handler that writes an unpaired surrogate as its escape."""

PARTIAL: Final = ".partial"
"""The ending of a file that is being written; one that is left behind can be deleted."""


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, in UTF-8 and with the line ends it is given; its folder is made if there is none.

    Several processes may write the same path: the last one wins.

    Raises:
        OSError: if it cannot be written; what was there before is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8", errors=_SURROGATES, newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented by two spaces."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object on each line."""
    write_text(path, "".join(map(_line, rows)))


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON object as the last line, and force it to the disk."""
    append_json_lines(path, [row])


def append_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add JSON objects as the last lines, and force them to the disk together."""
    with path.open("a", encoding="utf-8", errors=_SURROGATES, newline="") as file:
        file.writelines(_line(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
