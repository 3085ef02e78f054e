"""Several lines of `profile.jsonl` as one profile, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ctpo.errors import UserError
from ctpo.runs.directory import RunDirectory, read_records

_COLUMNS: Final = ("count", "position_mean", "high", "low", "dual", "log_ratio_mean", "log_ratio_std")
_COUNTED: Final = ("count", "high", "low", "dual")


def read_profiles(run: RunDirectory) -> list[dict[str, Any]]:
    """The checked lines of a run's profile, oldest first.

    Raises:
        UserError: if there is no run, no profile, or a line that cannot be used.
    """
    if not run.path.is_dir():
        raise UserError(f"{run.path} is not a run (no such directory); give a run's directory")
    if not run.profile.is_file():
        raise UserError(
            f"{run.path} has no {run.profile.name}: it ran without diagnostics, or has not finished a rollout batch; "
            "train with diagnostics=true"
        )
    lines = read_records(run.profile)
    if not lines:
        raise UserError(f"{run.profile} holds no whole line; let the run finish a rollout batch")
    for number, line in enumerate(lines, start=1):
        _check(run.profile, number, line, lines[0])
    return lines


def _check(path: Path, number: int, line: dict[str, Any], first: dict[str, Any]) -> None:
    where = f"{path} line {number}"
    try:
        bins = len(line["edge"])
        tails = line["log_ratio_histogram"]
        cells = len(tails["edge"]) + 1
        wrong = [name for name in _COLUMNS if len(line[name]) != bins]
        wrong += [side for side in ("gain", "harm") if any(len(row) not in (0, cells) for row in tails[side])]
        numbers = [value for name in _COLUMNS for value in line[name] if value is not None]
        finite = all(math.isfinite(value) for value in numbers)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where} lacks figures ({error}); it was written by another version, or by hand"
        ) from None
    if wrong:
        raise UserError(f"{where} is damaged ({wrong[0]} does not fit {bins} bins); take the line out")
    if not finite:
        raise UserError(f"{where} holds a figure that is not finite; take the line out")
    if line["edge"] != first["edge"] or tails["edge"] != first["log_ratio_histogram"]["edge"]:
        raise UserError(f"{where} has other bins than line 1; calibrate on lines of one kind")


def pool(lines: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Counts added, moments pooled by counts: what `calibrate` reads, and what the run's own band clipped."""
    columns = {
        name: torch.tensor([[value or 0 for value in line[name]] for line in lines], dtype=torch.float64)
        for name in _COLUMNS
    }
    count = columns["count"]
    total = count.sum(0).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return (count * values).sum(0) / total

    centre = mean(columns["log_ratio_mean"])
    variance = mean(columns["log_ratio_std"].square() + (columns["log_ratio_mean"] - centre).square())
    cells = len(lines[0]["log_ratio_histogram"]["edge"]) + 1

    def tail(side: str) -> Tensor:
        rows = [[row or [0] * cells for row in line["log_ratio_histogram"][side]] for line in lines]
        return torch.tensor(rows, dtype=torch.float64).sum(0)

    return {
        **{name: columns[name].sum(0) for name in _COUNTED},
        "edge": torch.tensor(lines[0]["edge"], dtype=torch.float64),
        "position_mean": mean(columns["position_mean"]),
        "log_ratio_mean": centre,
        "log_ratio_std": variance.sqrt(),
        "cell_edge": torch.tensor(lines[0]["log_ratio_histogram"]["edge"], dtype=torch.float64),
        "gain": tail("gain"),
        "harm": tail("harm"),
    }
