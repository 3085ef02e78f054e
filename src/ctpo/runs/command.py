"""Which command a run belongs to, as its `config.yaml` says, and how it is continued."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.runs.files import read_text

KEY: Final = "command"
"""The key of `config.yaml` that names the command. Runs of `ctpo train` have none."""
TRAIN, WARM_UP = "train", "warm-up"
_LINE: Final = re.compile(rf"^{KEY}: {WARM_UP}$", re.MULTILINE)


def resume_words(run: Path) -> str:
    """Return the command that continues the run in this directory."""
    try:
        warm_up = _LINE.search(read_text(run / "config.yaml")) is not None
    except (OSError, ValueError):
        warm_up = False
    return f"ctpo {WARM_UP if warm_up else TRAIN} --resume {run}"


def check_command(recipe: Mapping[str, Any], source: Path, wanted: str) -> None:
    """Refuse the recipe or the run of another command.

    Raises:
        UserError: if it belongs to another one.
    """
    command = recipe.get(KEY, TRAIN)
    if command != wanted:
        raise UserError(f"{source} belongs to `ctpo {command}`; give it to that, not to `ctpo {wanted}`")
