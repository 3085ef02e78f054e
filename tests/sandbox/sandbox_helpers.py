"""The engines that are available here, and the reports of the hostile programs, one run per engine and user."""

from __future__ import annotations

import functools
import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ctpo.sandbox import Sandbox, SandboxUnavailable, interpreter

HERE = Path(__file__).parent
SOURCE = Path(interpreter.__file__).parents[2]
ENGINES = ("bubblewrap", "landlock")


@functools.cache
def unavailable(engine: str) -> str | None:
    """Why an engine is not available on this machine, or None if it is."""
    try:
        Sandbox(engine=engine, workers=1).close()
    except SandboxUnavailable as reason:
        return str(reason)
    return None


def run_as(user: str, arguments: list[str], timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """`user` is "self", or "ordinary" (skips where this process is not root, so ordinary already)."""
    command = [sys.executable, *arguments]
    environment = {
        "PYTHONPATH": str(SOURCE),
        "PATH": os.environ.get("PATH", ""),
        "TMPDIR": tempfile.gettempdir(),
    }
    environment["CTPO_TEST_SECRET"] = "secret-" + secrets.token_hex(8)
    if user == "ordinary":
        if os.geteuid() != 0:
            pytest.skip("only root can become an ordinary user; this run is one already")
        found = interpreter.find_interpreter(hidden=())
        needed = [*found.readable, *found.packages, Path(sys.prefix), SOURCE, HERE]
        helper = [sys.executable, str(HERE / "sandbox_ordinary.py"), *map(str, needed), "--"]
        command = helper + command
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@functools.cache
def hostile_reports(engine: str, user: str) -> dict[str, dict[str, Any]]:
    """The report on every hostile program, by name (see sandbox_driver.py)."""
    done = run_as(user, [str(HERE / "sandbox_driver.py"), engine])
    assert done.returncode == 0, done.stderr[-3000:]
    reports: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return reports
