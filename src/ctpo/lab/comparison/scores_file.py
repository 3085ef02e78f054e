"""The scores of a comparison in one small CSV file. A run that is in it need not be run again, here or elsewhere."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.lab.comparison.plan import Cell
from ctpo.runs.atomic import write_text
from ctpo.runs.files import read_text
from ctpo.runs.identity import deciding_settings
from ctpo.runs.scores import Score
from ctpo.version import __version__

COLUMNS: Final = (
    *("regime", "objective", "setting", "seed"),
    *("final", "stderr", "auc", "collapsed", "seconds", "clip_fraction", "ess"),
    *("cpu_s", "commit", "recipe", "graded"),
)
_LATER: Final = {"graded": "False"}
"""Columns that files of earlier versions lack, and what they say there."""
_DECIMALS: Final = 6


class ScoresFile:
    """A CSV file with one line per run. Every run that is added writes the whole file again.

    The column `recipe` is a digest of the run's recipe. A line counts only for a run with the same recipe.

    Raises:
        UserError: if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._commit = path, _commit()
        self._rows: dict[tuple[str, ...], dict[str, Any]] = {}
        if path.exists():
            for row in self._read():
                self._rows[self._key(row)] = row

    def score(self, cell: Cell) -> Score | None:
        """Return the scores of a run, or None if the file does not have them.

        Raises:
            UserError: if the file has the scores of a run with another recipe in its place.
        """
        row = self._rows.get(self._key(_name(cell)))
        if row is None:
            return None
        if row["recipe"] != digest(cell.keys):
            raise UserError(
                f"{self._path} holds {cell.folder} of another recipe; give the changed comparison another file"
            )
        return _score(row)

    def add(self, cell: Cell, score: Score, cpu_s: float | None) -> None:
        """Add the scores of a run and its processor seconds if they are known, or replace them."""
        row = {
            **_name(cell),
            **{name: _text(value) for name, value in vars(score).items()},
            "cpu_s": _text(cpu_s),
            "commit": self._commit,
            "recipe": digest(cell.keys),
        }
        self._rows[self._key(row)] = row
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        write_text(self._path, text.getvalue())

    def _read(self) -> list[dict[str, Any]]:
        try:
            rows = list(csv.DictReader(io.StringIO(read_text(self._path), newline="")))
            for row in rows:
                for name, value in _LATER.items():
                    row.setdefault(name, value)
                if set(row) != set(COLUMNS):
                    raise ValueError("its columns are not those of a comparison's scores")
                _score(row)
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise UserError(f"{self._path} is damaged ({error}); repair it, or give another file") from None
        return rows

    def _key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row[name] for name in ("regime", "objective", "setting", "seed"))


def digest(keys: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits of a hash of a recipe's settings, those that change nothing left out."""
    text = json.dumps(deciding_settings(keys), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _name(cell: Cell) -> dict[str, str]:
    setting = cell.folder.parent.name
    return {"regime": cell.regime, "objective": cell.arm, "setting": setting, "seed": str(cell.seed)}


def _score(row: Mapping[str, str]) -> Score:
    numbers = {
        name: float(row[name]) if row[name] else None
        for name in ("final", "auc", "seconds", "stderr", "clip_fraction", "ess")
    }
    needed = [numbers["final"], numbers["auc"], numbers["seconds"]]
    flags = {name: row[name] == "True" for name in ("collapsed", "graded")}
    if not {row[name] for name in flags} <= {"True", "False"} or None in needed:
        raise ValueError(f"a score is incomplete: {dict(row)}")
    return Score(**flags, **numbers)  # type: ignore[arg-type]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{round(value, _DECIMALS)!r}" if isinstance(value, float) else str(value)


def _commit() -> str:
    """Return the commit of this code if it runs from a checkout, or else the version of the package."""
    where = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"],
            cwd=where, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return __version__
    return described.stdout.strip()
