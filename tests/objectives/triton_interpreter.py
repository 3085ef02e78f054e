"""Saves Triton's interpreter most of its time: it rewires the language at every call of a function."""

from __future__ import annotations

from typing import Any


def patch_once() -> None:
    """Rewire the language at the first call of each kind, for the life of this process."""
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()

    def once(fn: Any) -> Any:
        language = interpreter.tl
        kind = tuple(any(value is x for value in fn.__globals__.values()) for x in (language, language.core))
        if kind not in done:
            done.add(kind)
            patch(fn)
        return interpreter._LangPatchScope()  # of no changes: nothing is restored

    interpreter._patch_lang = once
