"""A run's files as they are: what is missing or damaged is left out and noted, never guessed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Record = Mapping[str, Any]
MARKS = ("config.yaml", "metrics.jsonl", "summary.json")
"""A directory that holds one of these is a run's."""

_LARGEST = 1e100
_STEP_FIELDS = ("batch", "step")


@dataclass(kw_only=True)
class Run:
    """What one run's directory holds, as far as it can be read."""

    path: Path
    config: Record = field(default_factory=dict)
    environment: Record = field(default_factory=dict)
    summary: Record = field(default_factory=dict)
    """Empty where the run has not finished."""
    records: list[Record] = field(default_factory=list)
    """`metrics.jsonl`, one a rollout batch; numbers that are not finite are None."""
    profiles: list[Record] = field(default_factory=list)
    """`profile.jsonl`, unchecked but for being objects with a batch."""
    notes: list[str] = field(default_factory=list)
    """What is missing, in words."""

    @property
    def objective(self) -> str:
        """The preset's name."""
        return str(self.config.get("objective") or self.summary.get("objective") or "unknown objective")

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        seed = self.config.get("seed", self.summary.get("seed"))
        return seed if isinstance(seed, int) else None

    def told_not_to(self, key: str) -> bool:
        """Whether the recipe switched this kind of record off (`diagnostics: false`, `transcripts: 0`)."""
        return self.config.get(key) in (False, 0)

    def batches(self, folder: str) -> dict[int, Path]:
        """The files `batch-0004.jsonl` in one of the run's folders, by batch."""
        found = {}
        for path in sorted(self.path.joinpath(folder).glob("batch-*.jsonl")):
            number = path.stem.removeprefix("batch-")
            if number.isdecimal():
                found[int(number)] = path
        return found

    def rows(self, path: Path) -> list[Record]:
        """The lines of a file of the run's; damaged ones are left out and noted."""
        return _lines(path, str(path.relative_to(self.path)), self.notes, may_be_empty=True)


def is_run(path: Path) -> bool:
    """Whether a directory looks like a run's."""
    return any(path.joinpath(name).is_file() for name in MARKS)


def read_run(path: Path) -> Run:
    """Everything but the transcripts and samples, which are read when they are chosen."""
    run = Run(path=path)
    run.config = _mapping(path / "config.yaml", run.notes, yaml.safe_load)
    run.environment = _mapping(path / "environment.json", run.notes, json.loads)
    run.records = _ordered(
        _lines(path / "metrics.jsonl", "metrics.jsonl", run.notes), "metrics.jsonl", run.notes
    )
    if run.told_not_to("diagnostics"):
        run.notes.append("diagnostics: false in its recipe: no figures by position, no ratios token by token")
    else:
        lines = _lines(path / "profile.jsonl", "profile.jsonl", run.notes)
        run.profiles = _ordered(lines, "profile.jsonl", run.notes)
    if path.joinpath("summary.json").is_file():
        run.summary = _mapping(path / "summary.json", run.notes, json.loads)
    else:
        run.notes.append(
            "summary.json is missing: the run has not finished; figures are those of its last record"
        )
    _note_absent_numbers(run)
    return run


def number(value: Any) -> float | None:
    """A number that can be reckoned with, or None: neither infinite nor NaN nor so large that squares overflow."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
        return None
    return float(value)


def numbers(value: Any) -> list[float | None]:
    """A list of numbers, None where one is not; empty where it is no list."""
    return [number(each) for each in value] if isinstance(value, list) else []


def _mapping(path: Path, notes: list[str], parse: Any) -> Record:
    if not path.is_file():
        notes.append(f"{path.name} is missing")
        return {}
    try:
        found = parse(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        reason = "not a mapping"
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    notes.append(f"{path.name} is damaged and left out ({reason[:120]})")
    return {}


def _lines(path: Path, name: str, notes: list[str], *, may_be_empty: bool = False) -> list[Record]:
    """JSON objects, one a line. Not splitlines(): a response may hold U+2028 and its like."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        notes.append(f"{name} is missing")
        return []
    except OSError as error:
        notes.append(f"{name} cannot be read ({error.strerror})")
        return []
    found: list[Record] = []
    damaged: list[int] = []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
            found.append(record)
        except (ValueError, RecursionError):
            damaged.append(place)
    if damaged == [len(lines)]:
        notes.append(f"{name} is cut short: its last line is left out")
    elif damaged:
        notes.append(f"{name}: {_places(damaged)} damaged and left out")
    if not found and not damaged and not may_be_empty:
        notes.append(f"{name} is empty")
    return found


def _places(damaged: list[int]) -> str:
    told = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
    return f"line {told} is" if len(damaged) == 1 else f"{len(damaged)} lines ({told}) are"


def _ordered(records: Iterable[Record], name: str, notes: list[str]) -> list[Record]:
    """By batch, the last of two that tell of the same one."""
    by_batch: dict[int, Record] = {}
    strangers = repeated = 0
    for record in records:
        if not all(type(record.get(key)) is int and number(record[key]) is not None for key in _STEP_FIELDS):
            strangers += 1
            continue
        repeated += record["batch"] in by_batch
        by_batch[record["batch"]] = record
    if strangers:
        notes.append(f"{name}: {strangers} lines without batch and step are left out")
    if repeated:
        notes.append(f"{name}: {repeated} batches are told twice; the later line counts")
    return [by_batch[batch] for batch in sorted(by_batch)]


def _note_absent_numbers(run: Run) -> None:
    absent = Counter(
        name
        for record in run.records
        for name, value in record.items()
        if value is None or (isinstance(value, float) and not math.isfinite(value))
    )
    if absent:
        told = ", ".join(f"{name} ({count})" for name, count in absent.most_common(6))
        run.notes.append(f"metrics.jsonl holds values that are no numbers, left out of the curves: {told}")
