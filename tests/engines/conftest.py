"""What the tests of engines share."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """What a run finds in its environment. Ray's sockets need a short path, and Ray must not write into a home."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",
            "RAY_raylet_start_wait_time_s": "300",
        }
