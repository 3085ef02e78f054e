"""One command at a time writes to a folder that a later one may continue."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ctpo.errors import UserError


@contextmanager
def sole_use(folder: Path | None) -> Iterator[None]:
    """Within, no other command that asks for the folder gets it; the lock ends with the process, however that ends.

    A folder that cannot be made, or whose file system has no locks, is let through: what is wrong with it shows when it
    is written to.

    Raises:
        UserError: if another command has it.
    """
    with ExitStack() as stack:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((folder / ".lock").open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output {folder} is in use by another command; wait for it, or choose another"
            ) from None
        except OSError:
            pass
        yield
