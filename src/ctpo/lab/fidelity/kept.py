"""The directory of a measurement: what is in it is not computed again, unless what it was made from has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ctpo.errors import UserError
from ctpo.runs.atomic import PARTIAL, write_json

SETTINGS: Final = "settings.json"
_DIGESTS: Final = "digests.json"
Arrays = dict[str, Any]


class Kept:
    """Arrays on disk, each with a digest of its content and one of what it was made from.

    Args:
        folder: the directory of one measurement alone.
        settings: what everything in it depends on.

    Raises:
        UserError: if the directory holds something else, or a measurement with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        plain = json.loads(json.dumps(settings, default=str))
        self._source = digest(plain)
        path = folder / SETTINGS
        if path.is_file():
            held = _json(path)
            if held != plain:
                wrong = sorted(
                    name
                    for name in {*plain, *(held or {})}
                    if not isinstance(held, dict) or held.get(name) != plain.get(name)
                )
                raise UserError(
                    f"{folder} holds another measurement (other {', '.join(wrong)}); choose another --output"
                )
        elif folder.exists() and (not folder.is_dir() or any(p.name != ".lock" for p in folder.iterdir())):
            raise UserError(f"{folder} is in use for something else; choose another --output")
        else:
            self._write(path, plain)
        known = _json(folder / _DIGESTS)
        self._digests: dict[str, Any] = known if isinstance(known, dict) else {}

    def arrays(self, name: str, sources: Sequence[str], compute: Callable[[], Arrays]) -> tuple[Arrays, str]:
        """The arrays of that name, and the digest of their content.

        They are computed if they are not there yet, or if they were made from something else.

        Args:
            name: of the file, below the directory and without its ending.
            sources: digests of what they are made from, beside the settings.
            compute: returns the arrays.

        Raises:
            UserError: if the file was changed since it was written here, or cannot be written.
        """
        path, source = self.folder / f"{name}.npz", digest([self._source, *sources])
        entry = self._digests.get(name)
        if path.is_file() and isinstance(entry, dict) and entry.get("source") == source:
            content = _content(path)
            if content != entry.get("content"):
                raise UserError(f"{path} has changed since it was written; remove it, and run again")
            return _read(path), content
        arrays = compute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}{PARTIAL}")
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            content = _content(partial)
            partial.replace(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); choose another --output") from None
        self._digests[name] = {"source": source, "content": content}
        self._write(self.folder / _DIGESTS, self._digests)
        return arrays, content

    def _write(self, path: Path, value: Any) -> None:
        try:
            write_json(path, value)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}); choose another --output"
            ) from None


def digest(value: Any) -> str:
    """The digest of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _json(path: Path) -> Any:
    """What a file holds; None if there is none, or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Arrays:
    """The arrays in a file, which may come from anybody: no pickles are read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile and zlib raise errors of their own
        raise UserError(f"{path} is damaged ({type(error).__name__}); remove it, and run again") from None
