"""How a command shares its surroundings: with other processes, other commands and the libraries underneath."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ctpo.errors import Notice, UserError, one_line

_format = warnings.formatwarning


def is_main_process() -> bool:
    """Whether this process prints: it is the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def quieten() -> None:
    """Silence progress bars and notices of transformers and TRL that a user of `ctpo` can do nothing about.

    Their errors and our own warnings stay, a `Notice` as one line. Call this before importing either.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|torch|accelerate)\b")
    warnings.formatwarning = _formatted
    if not is_main_process():
        warnings.simplefilter("ignore")  # the main process gives the same ones
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if issubclass(category, Notice):
        return f"ctpo: {one_line(str(message))}\n"
    return _format(message, category, filename, lineno, line)


@contextmanager
def sole_use(folder: Path | None) -> Iterator[None]:
    """Hold a lock on a folder, so that no other command writes there at the same time.

    The lock ends with the process, however it ends. A folder that cannot be made, or whose file system has no locks,
    is not locked: what is wrong with it shows when it is written to.

    Args:
        folder: the folder; None locks nothing.

    Raises:
        UserError: if another command holds the lock, or if the file of the lock is no regular file.
    """
    with ExitStack() as stack:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                lock = folder / ".lock"
                # Not through a link, which could make a file elsewhere; O_NONBLOCK does not wait at a FIFO.
                handle = os.open(
                    lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666
                )
                stack.callback(os.close, handle)
                if not stat.S_ISREG(os.fstat(handle).st_mode):
                    raise UserError(f"{lock} is not a regular file; remove it")
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output {folder} is in use by another command; wait for it, or choose another"
            ) from None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{folder}/.lock is a link; remove it") from None
        yield
