"""Starts the zygote: it warms the interpreter up before it imports what each child runs.

A child copies every page on which it touches an object, because to touch an object is to count a reference. So what
all children touch is imported last, and into fresh memory. There it lies on few pages.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import NoReturn

from . import kernel
from .warm_up import warm_up
from .wire import CONFIGURATION_BYTES, EXIT_SETUP, Configuration

_POOL_BYTES, _POOL_HEADER, _LARGEST_BLOCK = 1 << 14, 48, 512
"""How CPython's allocator lays out its pools: each has blocks of one size, a multiple of 16 bytes."""
_MOST_BYTES_FILLED = 1 << 18
_filling: list[object] = []


@contextlib.contextmanager
def _room_to_write(config: Configuration) -> Iterator[None]:
    """A scratch folder while the modules that the caller named are imported: some of them write a cache."""
    if not (config.modules and config.namespaces and config.scratch):
        yield
        return
    options = f"size={config.scratch_bytes},mode=700".encode()
    kernel.call("mount", b"tmpfs", config.scratch.encode(), b"tmpfs", 0, options)
    os.chdir(config.scratch)
    try:
        yield
    finally:
        os.chdir("/")
        kernel.call("umount2", config.scratch.encode(), kernel.MNT_DETACH)


def _reset_signals() -> None:
    """Forget which signals the host ignores: they are inherited. Without SIGCHLD, the ends of children are lost."""
    for number in signal.valid_signals():
        kept = number in (signal.SIGPIPE, signal.SIGXFSZ)  # the interpreter itself ignores these
        if not kept and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _fill_pools() -> None:
    """Fill the pools that are in use, so that what comes next lies in fresh ones. Source: `Objects/obmalloc.c`."""
    gc.collect()
    empty = sys.getsizeof(b"")
    for size in range(-(-empty // 16) * 16, _LARGEST_BLOCK + 1, 16):
        row, previous = 0, 0
        for _ in range(_MOST_BYTES_FILLED // size):
            block = bytes(size - empty)
            _filling.append(block)
            # A fresh pool hands out its blocks from the first one on, in a row.
            first, next_one = id(block) % _POOL_BYTES == _POOL_HEADER, id(block) == previous + size
            row = 1 if first else row + 1 if row and next_one else 0
            if row == 3:
                break
            previous = id(block)


def main(descriptor: int) -> NoReturn:
    """Read the configuration from the socket, warm up, and become the zygote."""
    kernel.call("prctl", kernel.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    control = socket.socket(fileno=descriptor)
    config = Configuration(control.recv(CONFIGURATION_BYTES))
    if not config.namespaces and os.getppid() != config.supervisor:
        os._exit(EXIT_SETUP)  # it died before that; bubblewrap has a signal of its own
    sys.path += config.paths
    sys.argv = [""]
    sys.dont_write_bytecode = True
    # What the warm-up prints must not appear in the first program's output.
    outside, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    with _room_to_write(config):
        packages = warm_up(config.preload, config.modules)
    sys.stdout = outside
    os.environ.clear()
    _reset_signals()
    _fill_pools()
    from .zygote import serve

    serve(control, config, packages)
