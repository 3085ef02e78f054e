"""The result of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "error", "timeout", "memory", "output_limit", "lost"]


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """The outcome of one program.

    Args:
        status: `ok` (it ended with exit code 0), `error` (an exception, another exit code, or a fatal signal),
            `timeout`, `memory` (an uncaught MemoryError), `output_limit`, or `lost` (it was killed from outside twice,
            which says nothing about the program).
        stdout: decoded as UTF-8 with replacement characters, with every end of a line as a line feed, and cut at the
            output limit.
        stderr: the same; a traceback shows the program's own frames only.
        wall_s: the seconds from sending the program to the end of its process.
        cpu_s: the CPU seconds of its process, including its set-up and the memory pages copied after the fork.

    Example:
        SandboxResult(status="ok", stdout="42", stderr="", wall_s=0.01).ok  # True
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
    """No effective isolation is possible here, and the unsafe option was not given."""
