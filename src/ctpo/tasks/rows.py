"""The rows of a dataset file: JSON lines, a JSON array, CSV or parquet, also packed with gzip.

What a file is shows in its content: an array begins with `[`, gzip and parquet with bytes of their own. The name of a
file decides only between CSV and JSON.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.extras import require
from ctpo.runs.files import read_bytes

SUFFIXES: Final = tuple(
    f"{form}{packed}" for form in (".jsonl", ".json", ".parquet", ".csv", ".tsv") for packed in ("", ".gz")
)
"""The endings of names that are taken for a dataset file."""
_MOST_BYTES: Final = 2**32
_EXPANDED_FREELY: Final = 2**28
_EXPANSION: Final = 100
"""A gzip file may grow to so many times its size, and to `_EXPANDED_FREELY` bytes in any case. Text grows tenfold."""
_SPACES: Final = re.compile(r"[ \t\r\n]*")
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
_NOT_READ: Final = {
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it",
    b"\xfd7zXZ": "packed with xz; unpack it",
    b"BZh": "packed with bzip2; unpack it",
    b"ARROW1": "an Arrow file; save it as parquet or JSON lines",
    b"\xff\xfe\x00\x00": "text in UTF-32; save it in UTF-8",
    b"\x00\x00\xfe\xff": "text in UTF-32; save it in UTF-8",
    b"\xff\xfe": "text in UTF-16; save it in UTF-8",
    b"\xfe\xff": "text in UTF-16; save it in UTF-8",
}
"""What a file is that begins with these bytes, and what to do about it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a file."""

    columns: dict[str, Any]
    number: int
    """The line in which the row begins, or its place in an array or a parquet file, counted from 1."""
    place: str
    """Where it is, for error messages: "dataset FILE line 3"."""


def read_rows(path: Path) -> list[Row]:
    """Every row of a file, in order. Blank lines hold none.

    Raises:
        UserError: if the file is missing, or is not one of these forms, or a row is not an object.
    """
    try:
        content = read_bytes(path, _MOST_BYTES)
    except FileNotFoundError:
        raise UserError(
            f"dataset {path} does not exist; give the path of a JSONL, CSV or parquet file"
        ) from None
    except (OSError, ValueError) as error:  # a path may hold what no file name can
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"dataset {path} cannot be read ({reason}); give a JSONL, CSV or parquet file"
        ) from None
    if content.startswith(_GZIP):
        content = _unpacked(path, content)
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if content.startswith(_PARQUET) or suffix == ".parquet":
        return _parquet(path, content)
    text = _decoded(path, content)
    if suffix in (".csv", ".tsv"):
        return list(_table(path, text, "\t" if suffix == ".tsv" else ","))
    return _array(path, text) if text.lstrip().startswith("[") else _lines(path, text)


def _unpacked(path: Path, content: bytes) -> bytes:
    most = min(_MOST_BYTES, max(_EXPANDED_FREELY, _EXPANSION * len(content)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"dataset {path} cannot be unpacked with gzip ({error}); write it again, or unpack it"
        ) from None
    if len(unpacked) > most:
        raise UserError(
            f"dataset {path} grows to more than {most:,} bytes when it is unpacked; unpack it yourself"
        )
    return unpacked


def _decoded(path: Path, content: bytes) -> str:
    for mark, what in _NOT_READ.items():
        if content.startswith(mark):
            raise UserError(f"dataset {path} is {what}")
    zero = content.find(b"\0")
    if zero >= 0:
        raise UserError(
            f"dataset {path} has a zero byte at position {zero}, so it is not text in UTF-8; save it in UTF-8"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"dataset {path} line {line} is not UTF-8 (byte 0x{content[error.start]:02x}); save it in UTF-8"
        ) from None


def _lines(path: Path, text: str) -> list[Row]:
    # Not splitlines(): JSON strings may contain U+2028 and similar characters.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows: list[Row] = []
    for number, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            spread = [] if rows else _spread_out(path, text)
            if spread:
                return spread
            raise _not_json(path, number, error, line.strip()) from None
        rows.append(_object(value, number, f"dataset {path} line {number}"))
    return rows


def _spread_out(path: Path, text: str) -> list[Row]:
    """The rows of a text in which an object takes several lines, as `jq` prints them; none if it is something else."""
    decoder = json.JSONDecoder()
    rows: list[Row] = []
    line, before = 1, 0
    start = _next(text, 0)
    try:
        while start < len(text):
            line, before = line + text.count("\n", before, start), start
            value, end = decoder.raw_decode(text, start)
            rows.append(_object(value, line, f"dataset {path} line {line}"))
            start = _next(text, end)
    except (ValueError, RecursionError):
        return []
    return rows


def _next(text: str, start: int) -> int:
    """The place of the first character from `start` on that is no space."""
    spaces = _SPACES.match(text, start)
    assert spaces is not None
    return spaces.end()


def _array(path: Path, text: str) -> list[Row]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise _not_json(path, line, error, text.split("\n")[line - 1].strip()) from None
    return [
        _object(value, number, f"dataset {path} row {number}") for number, value in enumerate(values, start=1)
    ]


def _table(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    before = csv.field_size_limit(max(len(text), 1))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        first = 1
        for cells in reader:
            number, first = first, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                continue
            place = f"dataset {path} line {number}"
            if len(cells) != len(names):
                raise UserError(
                    f"{place} has {len(cells)} cells and the header has {len(names)}; put cells that hold a "
                    f"{'tab' if delimiter != ',' else 'comma'} or a line feed into double quotes"
                )
            yield Row(columns=dict(zip(names, cells, strict=True)), number=number, place=place)
    except csv.Error as error:
        raise UserError(
            f"dataset {path} line {reader.line_num} is not CSV ({error}); correct the quotes, or give JSON lines"
        ) from None
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, content: bytes) -> list[Row]:
    require(f"dataset {path}", "train", "pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except Exception as error:  # damaged values make pyarrow raise much beside its own errors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"dataset {path} cannot be read as parquet ({reason}); give a parquet file") from None
    return [
        Row(columns=row, number=number, place=f"dataset {path} row {number}")
        for number, row in enumerate(rows, start=1)
    ]


def _object(value: Any, number: int, place: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place} is {type(value).__name__}, not an object; write {{...}}")
    return Row(columns=value, number=number, place=place)


def _not_json(path: Path, line: int, error: Exception, content: str) -> UserError:
    shown = content if len(content) <= 60 else content[:57] + "..."
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)[:80]
    return UserError(f"dataset {path} line {line} is not JSON ({reason}): {shown!r}; correct or remove it")
