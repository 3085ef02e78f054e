"""Reads one program and runs it as `__main__`, as an interpreter does."""

from __future__ import annotations

import builtins
import gc
import os
import resource
import sys
import threading
import types
from collections.abc import Callable
from importlib.machinery import BuiltinImporter
from types import TracebackType
from typing import Any, NoReturn

from .ending import finish, flush_originals, note_quiet_types, release
from .wire import EXIT_MEMORY, EXIT_SETUP, HEADER, Configuration

_TRACEBACK_CHARS = 4096
_FIRST_READ = 4096  # holds most programs; a larger buffer would cost every program a mapping of its own
_NEXT_READ = 1 << 20
_REHEARSALS = 20  # more than it takes the interpreter to specialize a function
_PROGRAM_NAME = "<program>"
_PROGRAM_PIPE = 3
_seeds: list[Callable[[], None]] = []
"""The methods that seed the shared generators from the system's entropy."""
_source = [""]
"""The text of the program that runs, for tracebacks."""


def prepare() -> None:
    """Make `__main__`, and the names and hooks that a program finds in an interpreter.

    The zygote calls it after it has frozen its own objects, because this module belongs to the program.
    """
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __loader__=BuiltinImporter)
    if sys.version_info < (3, 14):
        main.__dict__.update(__annotations__={})
    sys.modules["__main__"] = main
    sys.argv = ["-c"]
    sys.excepthook = sys.__excepthook__ = _show_exception
    threading.excepthook = _show_threads_exception


def rehearse() -> None:
    """Run what every child runs, so that the zygote's caches know it, and no child has to write to them."""
    _find_generators()
    program = b"print(3 + 67)"
    note_quiet_types()
    with open(os.devnull, "w") as quiet:
        gc.freeze()  # what is not frozen is taken for the program's own, and freed
        for _ in range(_REHEARSALS):
            prepare()
            sys.stdout = quiet
            reader, writer = os.pipe()
            os.write(writer, HEADER.pack(0, 0, len(program)) + program)
            os.close(writer)
            _, _, text = _read_program(reader)
            _reseed()
            _execute(text, release)
        gc.unfreeze()


def _read_program(descriptor: int) -> tuple[int, int, str]:
    """The memory limit, the CPU limit and the text of the program, read from the pipe, which is then closed.

    If nothing comes, this child is not needed and ends.
    """
    data = os.read(descriptor, _FIRST_READ)
    if len(data) < HEADER.size:
        os._exit(0)
    memory, cpu, length = HEADER.unpack_from(data)
    chunks = [data[HEADER.size :]]
    missing = length - len(chunks[0])
    while missing > 0:
        chunk = os.read(descriptor, min(missing, _NEXT_READ))
        if not chunk:
            os._exit(0)
        chunks.append(chunk)
        missing -= len(chunk)
    os.close(descriptor)
    return memory, cpu, b"".join(chunks).decode("utf-8", "surrogatepass")


def _find_generators() -> None:
    """Note how the generators of `random` and of numpy are seeded, if the zygote knows these modules."""
    if "random" in sys.modules:
        import random

        random.seed()  # also forgets the second number of a pair of normal ones, which the method below does not
        _seeds.append(super(random.Random, random._inst).seed)
    if "numpy.random" in sys.modules:
        _seeds.append(sys.modules["numpy.random"].seed)


def _reseed() -> None:
    """Give this child its own random numbers. The fork has copied the generators' states."""
    for seed in _seeds:
        seed()


def _own_frames(report: Any) -> None:
    """Keep only the program's own frames, in this report and in those of its causes."""
    report.stack[:] = [frame for frame in report.stack if frame.filename == _PROGRAM_NAME]
    behind = [report.__cause__, report.__context__, *(getattr(report, "exceptions", None) or ())]
    for other in behind:
        if other is not None:
            _own_frames(other)


def _show_exception(_: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what `sys.excepthook` prints, with the program's own frames only."""
    import linecache
    import traceback

    if sys.stderr is None:
        return
    text = _source[0]
    linecache.cache[_PROGRAM_NAME] = (len(text), None, text.splitlines(keepends=True), _PROGRAM_NAME)
    report = traceback.TracebackException(type(error), error, trace, compact=True)
    _own_frames(report)
    shown = "".join(report.format())
    if len(shown) > 2 * _TRACEBACK_CHARS:  # a syntax error quotes its line, which may be long
        shown = shown[:_TRACEBACK_CHARS] + " [...] " + shown[-_TRACEBACK_CHARS:]
    sys.stderr.write(shown)


def _show_threads_exception(hooked: threading.ExceptHookArgs) -> None:
    """Print what `threading.excepthook` prints, with the program's own frames only."""
    if hooked.exc_value is not None and not isinstance(hooked.exc_value, SystemExit):
        name = hooked.thread.name if hooked.thread else "unknown"
        if sys.stderr is not None:
            sys.stderr.write(f"Exception in thread {name}:\n")
        _show_exception(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)


def _exit_code(stop: SystemExit) -> int:
    """The exit code that `sys.exit(x)` means to an interpreter. The two codes with a meaning of ours become 1."""
    if stop.code is None:
        return 0
    if isinstance(stop.code, int):
        code = stop.code & 0xFF if abs(stop.code) < 1 << 63 else 0xFF
        return 1 if code in (EXIT_MEMORY, EXIT_SETUP) else code
    if sys.stderr is not None:
        print(stop.code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> int:
    """Show an uncaught exception as an interpreter does, and return the exit code that it means."""
    if isinstance(error, SystemExit):
        return _exit_code(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != _PROGRAM_NAME:
        trace = trace.tb_next
    error.__traceback__ = trace
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    try:
        sys.excepthook(type(error), error, trace)
    except SystemExit as stop:
        return _exit_code(stop)
    except MemoryError:
        raise
    except BaseException as second:
        second.__traceback__ = second.__traceback__ and second.__traceback__.tb_next
        print("Error in sys.excepthook:", file=sys.stderr)
        _show_exception(type(second), second, second.__traceback__)
        print("\nOriginal exception was:", file=sys.stderr)
        _show_exception(type(error), error, trace)
    return 1


def _execute(text: str, end: Callable[[int], int] = finish) -> int:
    """Run the program as `__main__`, end it, and return the exit code."""
    _source[0] = text
    code = 0
    try:
        try:
            exec(compile(text, _PROGRAM_NAME, "exec", dont_inherit=True), vars(sys.modules["__main__"]))
        except MemoryError:
            raise
        except BaseException as error:
            code = _report(error)
        return end(code)
    except MemoryError:
        os.write(2, b"MemoryError\n")
    # By now the exception has been freed, and so have the variables of its frames.
    try:
        finish(1)
    except MemoryError:
        vars(sys.modules["__main__"]).clear()
        flush_originals()
    return EXIT_MEMORY


def run(config: Configuration) -> NoReturn:
    """Wait for the program and run it. The child ends here in every case."""
    code = 1
    try:
        memory, cpu, text = _read_program(_PROGRAM_PIPE)
        if config.confine:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
            if memory < config.memory:
                limit = config.address_space + memory
                resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        _reseed()
        code = _execute(text)
    finally:
        os._exit(code)
