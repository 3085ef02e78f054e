"""Files are replaced whole or not at all."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

from ctpo.runs.atomic import (
    PARTIAL,
    append_json_line,
    append_json_lines,
    write_json,
    write_json_lines,
    write_text,
)
from ctpo.runs.json_lines import read_json_lines


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "summary.json"
    write_json(path, {"seed": 1})
    write_json(path, {"seed": 2})
    assert json.loads(path.read_text()) == {"seed": 2}
    assert [each.name for each in path.parent.iterdir()] == ["summary.json"]


def test_line_ends_and_separators_of_a_response_survive(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "a\r\nb\u2028c"}, {"text": "é"}]
    write_json_lines(path, rows[:1])
    append_json_line(path, rows[1])
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == rows
    write_text(path, "a\r\n")
    assert path.read_bytes() == b"a\r\n"


def test_half_an_emoji_is_written_as_its_escape_and_read_back(tmp_path: Path) -> None:
    rows = [{"text": "a\ud83d b\\\ude00 é\U0001f600", "k\udcff": ["\ud800"]}, {"text": "\\ud83d"}]
    write_json_lines(tmp_path / "rows.jsonl", rows[:1])
    append_json_lines(tmp_path / "rows.jsonl", rows[1:])
    assert [line.record for line in read_json_lines(tmp_path / "rows.jsonl")] == rows
    assert "é\U0001f600" in (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    write_json(tmp_path / "one.json", rows[0])
    assert json.loads((tmp_path / "one.json").read_bytes()) == rows[0]
    write_text(tmp_path / "page.html", "<p>\ud83d</p>")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "<p>\\ud83d</p>"


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: the real `write` fails."""
    path = tmp_path / "summary.json"
    write_text(path, "old")
    worker = os.fork()
    if worker == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            write_text(path, "x" * 1000)
        except OSError:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 3
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["summary.json"]


def test_processes_that_write_the_same_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    workers = []
    for letter in "ab":
        worker = os.fork()
        if worker == 0:
            try:
                for _ in range(50):
                    write_text(path, letter * 5000)
            except BaseException:
                os._exit(1)
            os._exit(0)
        workers.append(worker)
    assert [os.waitpid(worker, 0)[1] for worker in workers] == [0, 0]
    assert set(path.read_text()) in ({"a"}, {"b"})
    assert not list(tmp_path.glob(f"*{PARTIAL}"))
