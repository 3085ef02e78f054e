"""What came of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "error", "timeout", "memory", "output_limit", "lost"]


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """The outcome of one program.

    Args:
        status: `ok` (ended with exit code 0), `error` (an exception, another exit code, a fatal signal),
            `timeout`, `memory` (an uncaught MemoryError), `output_limit`, or `lost` (killed from outside
            twice; says nothing about the program).
        stdout: decoded as UTF-8 with replacement, cut at the output limit.
        stderr: likewise; a traceback shows the program's own frames only.
        wall_s: seconds from handing the program over to its child being reaped.
        cpu_s: seconds of CPU its child used, its set-up and the fork's page copies included.
    """

    status: Status
    stdout: str
    stderr: str
    wall_s: float
    cpu_s: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with exit code 0."""
        return self.status == "ok"


class SandboxUnavailable(RuntimeError):
    """No isolation that holds can be had here, and the unsafe option was not given."""
