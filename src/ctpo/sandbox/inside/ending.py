"""Ends a program as an interpreter does: threads are waited for, exit handlers run, and every buffer is written.

A real finalization also frees the modules of the warm interpreter, and so copies nearly all of its memory. That costs
more than most programs. This one is the same for what a program can show: it frees the program's own objects only, and
only if the end of one of them could show. The zygote's objects are frozen (`gc.freeze`), so `gc` knows which are whose.

Source: CPython's `Python/pylifecycle.c`, `Py_FinalizeEx` and `finalize_modules`.
"""

from __future__ import annotations

import _io
import _thread
import atexit
import contextlib
import gc
import sys
import threading
import weakref
from types import ModuleType
from typing import Any

from . import kernel

_QUIET: set[type] = set()
"""Types whose objects show nothing when they end: those that the zygote knows, so that a child need not look again."""
_ORIGINALS = sys.stdout, sys.stderr
_COLLECT = compile(
    "import gc; gc.collect()", "sys", "exec"
)  # where the interpreter says that a warning comes from
_flush_c_streams = kernel.libc.fflush
_FAILED_FLUSH = 120
"""The exit code of an interpreter that could not write its standard output."""
_DELETED = (
    "path argv ps1 ps2 last_exc last_type last_value last_traceback path_importer_cache meta_path path_hooks"
)


def finish(code: int) -> int:
    """End the program, and return the exit code: `code`, or 120 if a standard stream could not be flushed."""
    if _thread._count() or threading._threading_atexits:  # type: ignore[attr-defined]
        try:
            threading._shutdown()  # type: ignore[attr-defined]
        except BaseException as error:
            _report(error, threading)
    atexit._run_exitfuncs()
    return release(code)


def release(code: int) -> int:
    """Write every buffer and free the program's objects. Returns what `finish` returns, and calls no exit handlers."""
    flushed = _flush_streams()
    # Not `suppress`, here and below: a child that enters one copies more pages.
    try:
        if _end_shows():
            _release_objects()
    except BaseException:  # whatever happens here, what has been printed is not lost
        pass
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, name, getattr(sys, f"__{name}__", None))
    flush_originals()
    return code if flushed else _FAILED_FLUSH


def note_quiet_types() -> None:
    """Note the types of the objects that exist now, if their ends show nothing."""
    for kind in set(map(type, gc.get_objects())):
        if not (hasattr(kind, "__del__") or issubclass(kind, type | weakref.ReferenceType)):
            _QUIET.add(kind)


def flush_originals() -> None:
    """Write what is left in the streams that the program has got at its start, and in those of the C library."""
    for stream in (sys.stdout, sys.stderr, *_ORIGINALS):
        try:  # noqa: SIM105
            stream.flush()
        except BaseException:  # an interpreter is silent here, too
            pass
    _flush_c_streams(None)


def _flush_streams() -> bool:
    """Whether stdout and stderr could be flushed, if there are such streams and if they are open."""
    flushed = True
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name, None)
        if stream is None or _closed(stream):
            continue
        try:
            stream.flush()
        except BaseException as error:
            flushed = False
            if name == "stdout":
                _report(error, stream)
    return flushed


def _closed(stream: Any) -> bool:
    try:
        return bool(stream.closed)
    except BaseException:
        return False


def _report(error: BaseException, place: object) -> None:
    """Say that an exception is ignored, as the interpreter does where it cannot raise one."""
    kinds: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda arguments: kinds.append(type(arguments))

    class Failing:
        def __del__(self) -> None:
            raise ValueError

    Failing()  # shows the type of a hook's argument, which has no name
    sys.unraisablehook = hook
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    with contextlib.suppress(BaseException):
        hook(kinds[0]((type(error), error, trace, None, place)))


def _end_shows() -> bool:
    """Whether the end of one of the program's objects could write something: a destructor, a file, a generator."""
    objects = gc.get_objects()
    kinds = set(map(type, objects)) - _QUIET
    if not kinds:
        return False
    # An instance without attributes is unknown to gc, but its class is known. `isinstance` would ask the instance.
    metaclasses = {kind for kind in kinds if issubclass(kind, type)}
    kinds.update(thing for thing in objects if type(thing) in metaclasses)
    if any(hasattr(kind, "__del__") for kind in kinds):
        return True
    references = {kind for kind in kinds if issubclass(kind, weakref.ReferenceType)}
    return any(thing.__callback__ is not None for thing in objects if type(thing) in references)


def _release_objects() -> None:
    """Free the program's objects in the interpreter's order, and so run their destructors."""
    if gc.isenabled():
        exec(_COLLECT)
    for name in _DELETED.split():
        if hasattr(sys, name):
            setattr(sys, name, None)
    main = sys.modules.pop("__main__", None)
    if isinstance(main, ModuleType):
        watched = weakref.ref(main)
        del main
        exec(_COLLECT)
        if (alive := watched()) is not None:
            _clear_module(vars(alive))
            del alive
            exec(_COLLECT)
    if not _thread._count():  # what a running thread still uses is never freed
        _end_objects_kept_elsewhere()


def _clear_module(names: dict[str, Any]) -> None:
    """Set every name to None, those with one leading underscore first."""
    for private in (True, False):
        for name in list(names):
            if name != "__builtins__" and (name[:1] == "_" and name[1:2] != "_") is private:
                names[name] = None


def _end_objects_kept_elsewhere() -> None:
    """Run the destructors of objects that the program has put into a module of the warm interpreter."""
    silent = {
        id(thing) for thing in vars(sys).values()
    }  # when it frees these, nothing can be printed any more
    kept = [thing for thing in gc.get_objects() if hasattr(type(thing), "__del__")]
    files = [thing for thing in kept if issubclass(type(thing), _io._IOBase)]
    others = [thing for thing in kept if not issubclass(type(thing), _io._IOBase) and id(thing) not in silent]
    for thing in others:
        if not gc.is_finalized(thing):
            try:
                type(thing).__del__(thing)
            except BaseException as error:
                _report(error, type(thing).__del__)
    for thing in sorted(files, key=lambda file: not issubclass(type(file), _io._TextIOBase)):
        with contextlib.suppress(BaseException):
            thing.flush()
