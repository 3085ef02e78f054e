"""The files of a run: who writes where, and how a run is recognised."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ctpo.errors import UserError
from ctpo.runs.atomic import PARTIAL, append_json_line, write_json, write_json_lines, write_text
from ctpo.runs.checkpoints import last_good


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside one run's directory, and the reading and writing of its small files."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved recipe; `ctpo train` on it runs the run again."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and command line."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a rollout batch; line 0 is the evaluation before training."""
        return self.path / "metrics.jsonl"

    @property
    def profile(self) -> Path:
        """One JSON object a rollout batch: clipping and drift by position (docs/diagnostics.md)."""
        return self.path / "profile.jsonl"

    @property
    def summary(self) -> Path:
        """The run's result, written when it is complete."""
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        """The trained model and its tokenizer, as transformers saves them."""
        return self.path / "model"

    @property
    def curve(self) -> Path:
        """The learning curve."""
        return self.path / "curve.png"

    def transcripts(self, batch: int) -> Path:
        """Sampled held-out responses after this many rollout batches."""
        return self.path / "transcripts" / f"batch-{batch:04d}.jsonl"

    def samples(self, batch: int) -> Path:
        """Training responses of the last update of this rollout batch, token by token."""
        return self.path / "samples" / f"batch-{batch:04d}.jsonl"

    @property
    def holds_a_run(self) -> bool:
        return self.config.exists() or self.metrics.exists()

    def open(self, recipe: dict[str, Any], environment: dict[str, Any]) -> None:
        """Make the directory where there is none yet, and write down what runs here and on what.

        Raises:
            UserError: if that cannot be written.
        """
        try:
            write_text(self.config, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
            write_json(self.environment, environment)
        except OSError as error:
            raise UserError(
                f"output_dir={self.path} cannot be written ({error.strerror}); choose another"
            ) from None

    def check_free(self) -> None:
        """Refuse a directory that is taken.

        Raises:
            UserError: if it holds a run or anything else, or cannot be used.
        """
        try:
            if self.holds_a_run:
                raise UserError(
                    f"output_dir={self.path} already holds a run; choose another, or continue it with "
                    f"`ctpo train --resume {self.path}`"
                )
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"output_dir={self.path} is a file; choose a directory")
            if self.path.is_dir() and any(
                p.suffix != PARTIAL for p in self.path.iterdir()
            ):  # checkpoints are rotated: others' would go
                raise UserError(f"output_dir={self.path} is not empty; choose a directory of the run's own")
        except OSError as error:
            raise UserError(
                f"output_dir={self.path} cannot be used ({error.strerror}); choose another"
            ) from None

    def read_recipe(self) -> dict[str, Any]:
        """The keys this run was started with.

        Raises:
            UserError: if the directory is not a run's, or its recipe cannot be read.
        """
        try:
            if not self.config.is_file():
                raise UserError(
                    f"{self.path} is not a run (it has no {self.config.name}); give a run's directory"
                )
            keys = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except UserError:
            raise
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.config} is damaged ({reason}); start the run afresh") from None
        if not isinstance(keys, dict):
            raise UserError(f"{self.config} is damaged (not a mapping); start the run afresh")
        return keys

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        return last_good(self.path)

    def append(self, record: dict[str, Any], profile: dict[str, Any] | None = None) -> None:
        """Add one line to the metrics, and its profile to the profiles where there is one."""
        if profile is not None:  # first, so that a record is never without it
            append_json_line(self.profile, {"batch": record["batch"], "step": record["step"], **profile})
        append_json_line(self.metrics, _plain(record))

    def records(self) -> list[dict[str, Any]]:
        """The metrics so far; a last line cut short by a kill is left out.

        Raises:
            UserError: if another line is damaged; nothing is changed then.
        """
        return read_records(self.metrics)

    def rewind(self, step: int, updates: int) -> list[dict[str, Any]]:
        """Drop the records after this optimizer step, which a resumed run will write again.

        Args:
            step: optimizer steps done.
            updates: optimizer steps a rollout batch.

        Raises:
            UserError: if a record before it is missing.
        """
        kept = [record for record in self.records() if record["step"] <= step]
        expected = [*range(0, step + 1, updates)] if kept or step else []
        missing = sorted(set(expected) - {record["step"] for record in kept})
        if missing or len(kept) != len(expected):
            which = f"lacks the record of update {missing[0]}" if missing else "holds a record twice"
            raise UserError(f"{self.metrics} {which}; put it back as it was, or start the run afresh")
        profiles = [line for line in read_records(self.profile) if line["step"] <= step]
        if profiles or self.profile.exists():
            write_json_lines(self.profile, profiles)
        write_json_lines(self.metrics, kept)
        return kept

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`, which says that the run is complete."""
        write_json(self.summary, summary)

    def write_transcripts(self, batch: int, rows: Iterable[dict[str, Any]]) -> None:
        """Write the held-out responses sampled after this many rollout batches, one JSON object per line."""
        write_json_lines(self.transcripts(batch), rows)

    def write_samples(self, batch: int, rows: Iterable[dict[str, Any]]) -> None:
        """Write training responses of this rollout batch token by token, one JSON object per response."""
        write_json_lines(self.samples(batch), rows)

    def read_transcripts(self, batch: int) -> list[dict[str, Any]]:
        """What `write_transcripts` wrote; nothing where nothing was written."""
        path = self.transcripts(batch)
        if not path.is_file():
            return []
        # Not splitlines(): a response may hold U+2028 and its like.
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def default_run_path(keys: Mapping[str, Any]) -> Path:
    """`runs/<task>-<objective>-s<seed>-<time>`."""
    task, objective, seed = (
        keys.get("task", "arithmetic"),
        keys.get("objective", "ctpo"),
        keys.get("seed", 42),
    )
    return Path("runs") / f"{task}-{objective}-s{seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of a file with one record a rollout batch; a last one cut short by a kill is left out.

    Raises:
        UserError: if another line is damaged.
    """
    if not path.is_file():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]  # every complete line ends with a line feed
    return [_record(path, number, line) for number, line in enumerate(whole, start=1)]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            return record
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{path} line {number} is damaged; mend it, or start the run afresh")


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity as null: JSON has neither."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
