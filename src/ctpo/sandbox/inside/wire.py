"""The words between supervisor and zygote, and between supervisor and child.

On the socket (SOCK_SEQPACKET), to the zygote: a JSON configuration, then `F<id>` with three descriptors
(fork) and `K<id>` (kill). From it: `R<json>` once (ready), then for each child, only after it is reaped,
`X<id><wait status><user s><system s><max KiB>`. End of file ends the zygote and all it started.

On a child's pipe: a header, the program's text, end of file.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

REQUEST = struct.Struct("<cQ")
EXITED = struct.Struct("<cQiddq")
HEADER = struct.Struct("<QQ")
"""Bytes of memory, seconds of CPU."""

EXIT_MEMORY, EXIT_SETUP = 97, 98
"""A child's exit codes for an uncaught MemoryError, and for a confinement that could not be set up."""

CONFIGURATION_BYTES = 1 << 18


class Configuration:
    """What the supervisor sends first."""

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
        self.uid: int | None = fields["uid"]
        self.filter = bytearray(base64.b64decode(fields["filter"]))
        self.pid_offsets: list[int] = fields["pid_offsets"]
        self.address_space = 0  # what the warm interpreter itself maps; measured later
