"""Reads one program and runs it as `__main__`, as an interpreter does."""

from __future__ import annotations

import _thread
import atexit
import os
import resource
import sys
import threading
import types
from typing import Any, NoReturn

from .wire import EXIT_MEMORY, EXIT_SETUP, HEADER, Configuration

_TRACEBACK_CHARS = 4096
_PROGRAM_NAME = "<program>"


def _read_program() -> tuple[int, int, str]:
    """The memory limit, the CPU limit and the text of the program, read from descriptor 3.

    If nothing comes, this child is not needed and ends.
    """
    chunks = []
    while chunk := os.read(3, 1 << 20):
        chunks.append(chunk)
    os.close(3)
    data = b"".join(chunks)
    if len(data) < HEADER.size:
        os._exit(0)
    memory, cpu = HEADER.unpack_from(data)
    return memory, cpu, data[HEADER.size :].decode("utf-8", "surrogatepass")


def _reseed() -> None:
    """Give this child its own numpy random state. `random` reseeds itself after a fork."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _own_frames(report: Any) -> None:
    """Keep only the program's own frames, in this report and in those of its causes."""
    report.stack[:] = [frame for frame in report.stack if frame.filename == _PROGRAM_NAME]
    behind = [report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())]
    for other in behind:
        if other is not None:
            _own_frames(other)


def _print_traceback(error: BaseException, text: str) -> None:
    import linecache
    import traceback

    linecache.cache[_PROGRAM_NAME] = (len(text), None, text.splitlines(keepends=True), _PROGRAM_NAME)
    report = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
    _own_frames(report)
    shown = "".join(report.format())
    if len(shown) > 2 * _TRACEBACK_CHARS:  # a syntax error quotes its line, which may be long
        shown = shown[:_TRACEBACK_CHARS] + " [...] " + shown[-_TRACEBACK_CHARS:]
    sys.stderr.write(shown)


def _report_thread(hooked: threading.ExceptHookArgs, text: str) -> None:
    """Print what `threading.excepthook` prints, with the program's own frames only."""
    if hooked.exc_value is not None and not isinstance(hooked.exc_value, SystemExit):
        name = hooked.thread.name if hooked.thread else "unknown"
        sys.stderr.write(f"Exception in thread {name}:\n")
        _print_traceback(hooked.exc_value, text)


def _exit_code(stop: SystemExit) -> int:
    """The exit code that `sys.exit(x)` means to an interpreter. The two codes with a meaning of ours become 1."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        code = stop.code & 0xFF
        return 1 if code in (EXIT_MEMORY, EXIT_SETUP) else code
    print(stop.code, file=sys.stderr)
    return 1


def _finish(code: int) -> int:
    """End as an interpreter does: wait for threads, run exit handlers and flush. Returns `code`."""
    if _thread._count():
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _execute(text: str) -> int:
    """Run the program as `__main__` and return the exit code."""
    threading.excepthook = lambda hooked: _report_thread(hooked, text)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        try:
            exec(compile(text, _PROGRAM_NAME, "exec", dont_inherit=True), module.__dict__)
            return _finish(0)
        except SystemExit as stop:
            return _finish(_exit_code(stop))
        except MemoryError:
            raise
        except BaseException as error:
            _print_traceback(error, text)
            return _finish(1)
    except MemoryError:
        os.write(2, b"MemoryError\n")
        return EXIT_MEMORY


def run(config: Configuration) -> NoReturn:
    """Wait for the program and run it. The child ends here in every case."""
    code = 1
    try:
        memory, cpu, text = _read_program()
        if config.confine:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
            if memory < config.memory:
                limit = config.address_space + memory
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        _reseed()
        code = _execute(text)
    finally:
        os._exit(code)
