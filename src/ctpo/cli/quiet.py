"""How a command shares its surroundings: with other processes, other commands and the libraries underneath."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
    is not locked: what is wrong with it shows when it is written to. After an error, the lock's file and the folders
    are gone again if they were made here and hold nothing else.

    Args:
        folder: the folder; None locks nothing.

    Raises:
        UserError: if another command holds the lock, or if the file of the lock is no regular file.
    """
    with ExitStack() as stack:
        if folder is not None:
            with suppress(OSError):
                missing = [each for each in (folder, *folder.parents) if not each.exists()]
                folder.mkdir(parents=True, exist_ok=True)
                stack.push(lambda kind, *_: _remove_empty(missing) if kind is not None else None)
                _lock(folder / ".lock", folder, stack)
        yield


def _lock(lock: Path, folder: Path, stack: ExitStack) -> None:
    """Hold the lock until the stack ends.

    Raises:
        OSError: if the file system has no locks, or the file cannot be made.
    """
    # Not through a link, which could make a file elsewhere; O_NONBLOCK does not wait at a FIFO.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        new = not lock.exists()
        try:
            handle = os.open(lock, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{lock} is a link; remove it") from None
            raise
        stack.callback(os.close, handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{lock} is not a regular file; remove it")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output {folder} is in use by another command; wait for it, or choose another"
            ) from None
        if lock.exists() and os.path.samestat(os.fstat(handle), os.stat(lock)):
            break  # and not a file that its holder has just removed
    if new:
        stack.push(lambda kind, *_: lock.unlink(missing_ok=True) if kind is not None else None)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove these folders, the innermost first, until one of them holds something."""
    with suppress(OSError):
        for each in folders:
            each.rmdir()
