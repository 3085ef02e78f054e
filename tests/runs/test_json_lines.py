"""Damaged lines are named by their numbers, and a last line that is cut short differs from the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctpo.errors import UserError
from ctpo.runs.directory import RunDirectory, read_records
from ctpo.runs.json_lines import read_json_lines


def test_every_line_that_is_not_blank_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(b'{"a": 1}\n\n[2]\n' + deep + b'\n{"text": "x\xe2\x80\xa8y"}\n{"a": ')
    lines = read_json_lines(path)
    assert [(line.number, line.record, line.complete) for line in lines] == [
        (1, {"a": 1}, True),
        (3, None, True),
        (4, None, True),
        (5, {"text": "x\u2028y"}, True),
        (6, None, False),
    ]


def test_a_run_continues_from_its_complete_lines_only(tmp_path: Path) -> None:
    """The last line may look complete without its line feed; the next record would be appended to it."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 4}\n{"step": 8}')
    assert read_records(path) == [{"step": 0}, {"step": 4}]
    assert RunDirectory(tmp_path).rewind(4, 4) == [{"step": 0}, {"step": 4}]
    assert path.read_text() == '{"step": 0}\n{"step": 4}\n'
    path.write_text('{"step": 0}\n{"step": "4"}\n')
    with pytest.raises(UserError, match=r"line 2 is damaged"):
        read_records(path)
