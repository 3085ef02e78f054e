"""What verl and Ray print, kept in a file, and what a user needs of it, shown while the run goes on."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ctpo.runs.directory import RunDirectory
from ctpo.runs.json_lines import parse_record
from ctpo.training.records.events import Listener

_POLL_S: Final = 1.0
_STREAMS: Final = (1, 2)
_OURS: Final = re.compile(r"ctpo: (?!registered with verl)[^\x1b]*")
"""What a line of ours holds from its name on. Ray writes the name of a process before it, and colours."""


@contextmanager
def kept_aside(log: Path) -> Iterator[None]:
    """Add what this process and those that it starts print to a file.

    Args:
        log: the file. What was printed by an earlier part of the run stays.
    """
    _flush()
    kept = [os.dup(stream) for stream in _STREAMS]
    with log.open("ab") as file:
        for stream in _STREAMS:
            os.dup2(file.fileno(), stream)
    try:
        yield
    finally:
        _flush()
        for stream, copy in zip(_STREAMS, kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


@contextmanager
def followed(run: RunDirectory, log: Path, listener: Listener) -> Iterator[None]:
    """Tell a listener of every record that is added to a run, and of our own warnings in the file, from a thread.

    Args:
        run: the directory, whose records other processes write.
        log: the file of `kept_aside`.
        listener: is notified. It must not print to standard output, which `kept_aside` has taken.
    """
    follower = _Follower(run, log, listener)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(_POLL_S):
            follower.look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        follower.look()


class _Follower:
    """Shows what was added since it last looked."""

    def __init__(self, run: RunDirectory, log: Path, listener: Listener) -> None:
        self._printed, self._records, self._listener = _Tail(log), _Tail(run.metrics), listener
        self._shown: set[str] = set()

    def look(self) -> None:
        printed = b"\n".join(self._printed.lines()).decode("utf-8", errors="replace")
        for line in printed.splitlines():  # progress bars end theirs with a carriage return
            found = _OURS.search(line)
            if found is not None and found[0] not in self._shown:  # several processes may say the same
                self._shown.add(found[0])
                self._listener.notice(found[0].removeprefix("ctpo: ").strip())
        for written in self._records.lines():
            record = parse_record(written)
            if record is not None:
                self._listener.recorded(record)


class _Tail:
    """The whole lines that are added to a file, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0
        self.lines()

    def lines(self) -> list[bytes]:
        """Return the lines that were finished since the last call."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            text, end, _ = file.read().rpartition(b"\n")
        self._position += len(text) + len(end)
        return text.split(b"\n") if end else []
