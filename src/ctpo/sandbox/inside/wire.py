"""The messages between supervisor and zygote, and between supervisor and child.

The socket is a SOCK_SEQPACKET. To the zygote go a JSON configuration, then `F<id>` with three descriptors to fork a
child, and `K<id>` to kill one. From it comes `R<json>` once, when it is ready, and for each child, only after it is
reaped, `X<id><wait status><user s><system s><max KiB>`. The end of file ends the zygote and everything it started.

On a child's pipe come a header and the program's text. No end of file has a meaning on a pipe, because it does not come
while any process has a copy of the other end: a fork of the supervisor has. A socket can be shut down all the same.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from typing import Any

REQUEST = struct.Struct("<cQ")
EXITED = struct.Struct("<cQiddq")
HEADER = struct.Struct("<QQQ")
"""The memory limit in bytes, the CPU limit in seconds, and the length of the program's text in bytes."""

EXIT_MEMORY, EXIT_SETUP = 97, 98
"""The exit codes of a child after an uncaught MemoryError, and if its confinement could not be set up."""

CONFIGURATION_BYTES = 1 << 18


class Configuration:
    """The configuration that the supervisor sends first."""

    def __init__(self, raw: bytes) -> None:
        fields: dict[str, Any] = json.loads(raw)
        self.namespaces: bool = fields["namespaces"]
        self.confine: bool = fields["confine"]
        self.preload: str = fields["preload"]
        self.modules: list[str] = fields["modules"]
        self.paths: list[str] = fields["paths"]
        self.memory: int = fields["memory_bytes"]
        self.scratch: str | None = fields["scratch"]
        self.scratch_bytes: int = fields["scratch_bytes"]
        self.descriptors: int = fields["descriptors"]
        self.tasks: int = fields["tasks"]
        self.landlock: dict[str, Any] | None = fields["landlock"]
        users = fields["users"]  # the first one, and how many; each zygote takes one of its own
        self.uid = None if users is None else users[0] + int.from_bytes(os.urandom(4), "little") % users[1]
        self.zygote_filter = bytearray(base64.b64decode(fields["zygote_filter"]))
        self.filter = bytearray(base64.b64decode(fields["filter"]))
        self.pid_offsets: list[int] = fields["pid_offsets"]
        self.supervisor: int = fields["supervisor"]
        self.address_space = 0  # of the warm interpreter in bytes; measured later
