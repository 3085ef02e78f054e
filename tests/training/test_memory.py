"""Freed memory is not returned to the system, as the page faults of a process that allocates again show."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Blocks of 40 MB are above the 32 MiB up to which glibc raises its own threshold, so that it returns them by default.
_PROGRAM = """
import resource, sys, torch
from ctpo.cpu.memory import keep_freed_memory
assert sys.argv[1] == "no" or keep_freed_memory()
def work():
    for _ in range(20):
        x = torch.ones(10_000_000)
        y = x + 1
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_second_round_of_work_takes_no_new_pages() -> None:
    def faults(kept: str) -> int:
        command = [sys.executable, "-c", _PROGRAM, kept]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # If small blocks lie in between, a few new pages may be needed still, but not for each of the forty blocks.
    assert faults("yes") * 10 < faults("no")
