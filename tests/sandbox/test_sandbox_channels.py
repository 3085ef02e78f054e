"""No program can leave anything for another one, whether they run one after the other or side by side."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
from sandbox_channels import CHANNELS
from sandbox_helpers import HERE, run_as, unavailable

from ctpo.sandbox import Sandbox


@functools.cache
def channel_reports(engine: str, user: str) -> dict[str, tuple[str, str]]:
    """What each reader printed without and with a writer (see sandbox_channels.py)."""
    done = run_as(user, [str(HERE / "sandbox_channels.py"), engine])
    assert done.returncode == 0, done.stderr[-3000:]
    reports: dict[str, tuple[str, str]] = json.loads(done.stdout)
    return reports


@pytest.mark.parametrize("user", ["self", "ordinary"])
@pytest.mark.parametrize("name", CHANNELS)
def test_nothing_passes(name: str, engine: str, user: str) -> None:
    if name == "number_of_threads" and engine == "landlock" and (user == "ordinary" or os.geteuid() != 0):
        pytest.skip(
            "Landlock has one user for all programs, unless root starts it (docs/explanation/sandbox.md)"
        )
    without, with_writer = channel_reports(engine, user)[name]
    assert without == with_writer


def test_engines_do_not_meet(engine: str) -> None:
    """Two sandboxes of different engines meet as little as two programs of one."""
    other = {"bubblewrap": "landlock", "landlock": "bubblewrap"}[engine]
    if (reason := unavailable(other)) is not None:
        pytest.skip(reason)
    writer, reader, _ = CHANNELS["locks_left_on_stdin"]
    with Sandbox(workers=1, engine=engine) as here, Sandbox(workers=1, engine=other) as there:
        alone = there.run([reader])[0].stdout
        assert here.run([writer])[0].ok
        assert there.run([reader])[0].stdout == alone


def test_reading_leaves_no_access_time() -> None:
    """A read-only mount keeps access times. Under Landlock they are a known channel (docs/explanation/sandbox.md)."""
    if (reason := unavailable("bubblewrap")) is not None:
        pytest.skip(reason)
    path = Path(os.__file__).with_name("this.py")
    if path.stat().st_uid != os.geteuid():
        pytest.skip("only the owner of the interpreter's files can make one look unread")
    before = path.stat()
    old = 1_000_000_000
    os.utime(path, ns=(old, before.st_mtime_ns))
    try:
        with Sandbox(workers=1, engine="bubblewrap") as sandbox:
            result = sandbox.run([f"import os; print(len(open({str(path)!r}).read()))"])[0]
            assert result.ok, result.stderr
        assert path.stat().st_atime_ns == old
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
