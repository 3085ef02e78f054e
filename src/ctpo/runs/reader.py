"""Reading what a run left on disk, for reports: missing and damaged parts are left out, and each is noted in words."""

from __future__ import annotations

import errno
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctpo.errors import one_line
from ctpo.runs.command import KEY as COMMAND
from ctpo.runs.command import WARM_UP
from ctpo.runs.directory import RunDirectory
from ctpo.runs.files import MOST_BYTES, leads_out, read_text
from ctpo.runs.json_lines import read_json_lines
from ctpo.runs.script import KEY
from ctpo.runs.yaml_text import MOST_BYTES as MOST_YAML_BYTES
from ctpo.runs.yaml_text import parse_yaml

Record = Mapping[str, Any]

_LARGEST = 1e100
"""Larger figures are taken for damage; their squares could overflow."""
_MOST_LINES_NAMED = 5
_LINK = "a link that leads out of the run's directory"
_MOST_METRICS_NAMED = 6


@dataclass(kw_only=True)
class Run:
    """The contents of one run's directory, as far as they can be read."""

    path: Path
    config: Record = field(default_factory=dict)
    environment: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    """Empty if the run is not finished."""
    records: list[Record] = field(default_factory=list)
    """The lines of `metrics.jsonl`, one per rollout batch, in order."""
    profiles: list[Record] = field(default_factory=list)
    """The lines of `profile.jsonl`, in order. Only their batch and step are checked."""
    notes: list[str] = field(default_factory=list)
    """What is missing or damaged, one sentence each."""

    @property
    def objective(self) -> str:
        """The name of the preset, or "warm-up" for a run that imitates worked solutions."""
        return (
            WARM_UP
            if self.of_warm_up
            else str(self.config.get("objective") or self.summary.get("objective") or "unknown objective")
        )

    @property
    def seed(self) -> int | None:
        """The seed of the run."""
        seed = self.config.get("seed", self.summary.get("seed"))
        return seed if isinstance(seed, int) else None

    def switched_off(self, setting: str) -> bool:
        """Return whether the recipe asks for no files of a kind, as `diagnostics: false` or `transcripts: 0` do."""
        return self.config.get(setting) in (False, 0)

    @property
    def of_script(self) -> bool:
        """Whether a Python script started the run. Such a run keeps no transcripts."""
        return KEY in self.config

    @property
    def of_warm_up(self) -> bool:
        """Whether `ctpo warm-up` made the run. Such a run samples nothing, and its records are of optimizer steps."""
        return self.config.get(COMMAND) == WARM_UP

    def batches(self, folder: str) -> dict[int, Path]:
        """Return the files `batch-0004.jsonl` of one of the run's folders, by the number of the rollout batch."""
        files = {}
        for path in sorted(self.path.joinpath(folder).glob("batch-*.jsonl")):
            digits = path.stem.removeprefix("batch-")
            if digits.isdecimal():
                files[int(digits)] = path
        return files

    def rows(self, path: Path) -> list[Record]:
        """Return the JSON objects in one of the run's files; damaged lines are left out and noted."""
        return _read_lines(self.path, path, self.notes, may_be_empty=True)


def is_run(path: Path) -> bool:
    """Return whether a directory holds a file by which a run is recognised."""
    files = RunDirectory(path)
    return any(each.is_file() for each in (files.config, files.metrics, files.summary))


def read_run(path: Path) -> Run:
    """Read a run's directory. The transcripts and samples are read later, when some of them are chosen."""
    files, run = RunDirectory(path), Run(path=path)
    run.config = _read_mapping(path, files.config, run.notes, parse_yaml, MOST_YAML_BYTES)
    run.environment = _read_mapping(path, files.environment, run.notes, json.loads)
    run.records = _read_batches(files.metrics, run.notes)
    if run.switched_off("diagnostics"):
        run.notes.append(
            "diagnostics: false in its recipe: no figures by position, and no ratios token by token"
        )
    elif not run.of_warm_up:
        run.profiles = _read_batches(files.profile, run.notes)
    if files.summary.is_file():
        run.summary = _read_mapping(path, files.summary, run.notes, json.loads)
    else:
        run.notes.append(
            "summary.json is missing: the run is not finished; its figures are those of its last record"
        )
    _note_values_that_are_no_numbers(run)
    return run


def number(value: Any) -> float | None:
    """Return the value as a float; None if it is no number, infinite, NaN, or so large that its square overflows."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value)


def numbers(value: Any) -> list[float | None]:
    """Return the elements of a list, each as `number` gives it; an empty list if the value is no list."""
    return [number(each) for each in value] if isinstance(value, list) else []


def _read_mapping(
    run: Path, path: Path, notes: list[str], parse: Callable[[str], Any], most: int = MOST_BYTES
) -> Record:
    try:
        if leads_out(path, run):
            raise ValueError(_LINK)
        content = parse(read_text(path, most))
        if isinstance(content, dict):
            return content
        reason = "not a mapping"
    except FileNotFoundError:
        notes.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(str(getattr(error, "strerror", None) or error))
    notes.append(f"{path.name} is damaged and left out ({reason[:120]})")
    return {}


def _read_lines(run: Path, path: Path, notes: list[str], *, may_be_empty: bool = False) -> list[Record]:
    name = str(path.relative_to(run))
    try:
        if leads_out(path, run):
            raise OSError(errno.EINVAL, _LINK)
        lines = read_json_lines(path)
    except FileNotFoundError:
        notes.append(f"{name} is missing")
        return []
    except OSError as error:
        notes.append(f"{name} cannot be read ({error.strerror})")
        return []
    damaged = [line for line in lines if line.record is None]
    if len(damaged) == 1 and not damaged[0].complete:
        notes.append(f"{name} is cut short: its last line is left out")
    elif damaged:
        notes.append(f"{name}: {_named([line.number for line in damaged])} damaged and left out")
    if not lines and not may_be_empty:
        notes.append(f"{name} is empty")
    return [line.record for line in lines if line.record is not None]


def _named(lines: list[int]) -> str:
    named = ", ".join(map(str, lines[:_MOST_LINES_NAMED])) + (", …" if len(lines) > _MOST_LINES_NAMED else "")
    return f"line {named} is" if len(lines) == 1 else f"{len(lines)} lines ({named}) are"


def _read_batches(path: Path, notes: list[str]) -> list[Record]:
    """Return the records of a file in the order of their batches; of two with the same batch, the later."""
    by_batch: dict[int, Record] = {}
    without_batch = repeated = 0
    for record in _read_lines(path.parent, path, notes):
        if not all(_is_count(record.get(name)) for name in ("batch", "step")):
            without_batch += 1
            continue
        repeated += record["batch"] in by_batch
        by_batch[record["batch"]] = record
    if without_batch:
        notes.append(f"{path.name}: {without_batch} lines without batch and step are left out")
    if repeated:
        notes.append(f"{path.name}: {repeated} batches have two lines; the later line is used")
    return [by_batch[batch] for batch in sorted(by_batch)]


def _is_count(value: Any) -> bool:
    return type(value) is int and number(value) is not None


def _note_values_that_are_no_numbers(run: Run) -> None:
    missing = Counter(
        name
        for record in run.records
        for name, value in record.items()
        if value is None or (isinstance(value, float) and not math.isfinite(value))
    )
    if missing:
        named = ", ".join(f"{name} ({count})" for name, count in missing.most_common(_MOST_METRICS_NAMED))
        run.notes.append(
            f"metrics.jsonl holds values that are no numbers; they are left out of the curves: {named}"
        )
