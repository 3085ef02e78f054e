"""Runs of the real command line in processes of their own, forked from one that has already imported everything."""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["ctpo.training.run.train", "ctpo.report.drawing"])


def launch(
    argv: Iterable[str], log: Path, environ: dict[str, str] | None = None, *, largest_file: int | None = None
) -> BaseProcess:
    """`ctpo ARGV` in a process of its own; what it prints goes to `log`.

    `largest_file`: bytes to which a file may grow, as on a disk that is full by then.
    """
    return _start(_command, (list(argv),), log, environ or {}, largest_file)


def launch_many(count: int, argv: Iterable[str], log: Path) -> list[BaseProcess]:
    """The same as torchrun would start it: one process per rank, with the same environment variables."""
    return launch_function(count, _command, (list(argv),), log)


def launch_function(
    count: int, function: Callable[..., None], arguments: tuple[Any, ...], log: Path
) -> list[BaseProcess]:
    """Call a function of a module in as many processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        _start(
            *(function, arguments, log.with_name(f"{log.name}-{rank}")),
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]


def _start(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    log: Path,
    environ: dict[str, str],
    largest_file: int | None = None,
) -> BaseProcess:
    process = _CONTEXT.Process(target=_call, args=(function, arguments, str(log), environ, largest_file))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 240) -> int:
    """The exit code of the process, which is killed if it takes too long."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _call(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    log: str,
    environ: dict[str, str],
    largest_file: int | None,
) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environ)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    function(*arguments)


def _command(argv: list[str]) -> None:
    sys.argv = ["ctpo", *argv]
    from ctpo.cli.main import main

    sys.exit(main(argv))
