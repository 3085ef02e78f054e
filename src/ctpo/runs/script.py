"""A run that a Python script started: how its `config.yaml` names the script, and how the script is run again."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from ctpo.errors import UserError

KEY: Final = "script"
"""The key of `config.yaml` that tells a script's run from one of a recipe."""
RESUME: Final = "CTPO_RESUME"
"""An environment variable with the directory of a run, or one of its checkpoints. The trainer that writes to this
directory continues from there, without a word in the script."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """How a script was started."""

    file: str | None
    """Path of the script; None if Python was not started with a file."""
    command: tuple[str, ...]
    """The words after `python`; empty if they do not run the script again, as in a notebook."""
    directory: str
    """The working directory that it was started in."""

    def as_dict(self) -> dict[str, Any]:
        """The script as plain values for `config.yaml`."""
        return {"file": self.file, "command": list(self.command), "directory": self.directory}


def script_of(recipe: Mapping[str, Any], source: Path) -> Script | None:
    """The script that started a run; None if a recipe did.

    Args:
        recipe: the content of `config.yaml`.
        source: its path, for the error.

    Raises:
        UserError: if the entry is damaged.
    """
    if KEY not in recipe:
        return None
    entry = recipe[KEY]
    known = dict(entry) if isinstance(entry, Mapping) else {}
    command, directory, file = (known.get(name) for name in ("command", "directory", "file"))
    if not isinstance(command, list) or not all(
        isinstance(word, str) and "\0" not in word for word in [*command, directory, file or ""]
    ):
        raise UserError(f"{source} is damaged ({KEY} is {entry!r}); run the script itself")
    return Script(file=file, command=tuple(command), directory=str(directory))


def run_again(script: Script, resume: Path) -> NoReturn:
    """Put the script, started as it was, in the place of this process. Its trainer continues the run.

    Args:
        script: what is run.
        resume: the directory of the run, or one of its checkpoints.

    Raises:
        UserError: if it cannot be started.
    """
    path = resume.absolute()
    if not script.command:
        raise UserError(
            f"{resume} was trained in a notebook or at a prompt, which cannot be run again; continue it there with "
            "trainer.train(resume_from_checkpoint=True)"
        )
    try:
        os.chdir(script.directory)
    except OSError as error:
        raise UserError(
            f"{resume} was trained in the directory {script.directory}, which cannot be used ({error.strerror}); run "
            f"the script itself with {RESUME}={path}"
        ) from None
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *script.command], {**os.environ, RESUME: str(path)})


def asked_for(run: Path) -> Path | None:
    """What the environment says that the run in this directory is continued from: the directory itself, or one of its
    checkpoints; None if it says nothing about this directory."""
    named = os.environ.get(RESUME)
    if not named:
        return None
    path, here = Path(named).resolve(), run.resolve()
    return Path(named) if here in (path, path.parent) else None
