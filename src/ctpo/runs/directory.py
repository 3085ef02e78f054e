"""The files of one run: where they are, how they are written, and how they are read while the run goes on."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError
from ctpo.runs.atomic import PARTIAL, append_json_line, write_json, write_json_lines, write_text
from ctpo.runs.checkpoints import ASIDE, all_checkpoints, last_good
from ctpo.runs.command import resume_words
from ctpo.runs.files import read_text
from ctpo.runs.json_lines import read_json_lines

_LARGEST: Final = 1e15
_SHOWN: Final = (
    *("reward", "clip_fraction", "log_ratio_mean", "log_ratio_std", "tool_calls", "tokens_per_s"),
    *("skipped_updates", "loss", "learning_rate", "tokens"),
)
"""Figures of a record that a command prints, beside those of the held-out evaluation and the times."""
EVALUATED: Final = ("heldout_pass@1", "heldout_problems")
"""Figures that the first record of `ctpo train` holds."""
_FLAGS: Final = frozenset({"heldout_graded"})
"""Entries of a record that are true or false."""


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory: the paths in it, and the reading and writing of its small files.

    Reading is strict here, because a run that continues must not continue from damaged records. Reports read with
    `ctpo.runs.reader`, which leaves damaged parts out.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The complete recipe. `ctpo train` with this file repeats the run."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions of the packages, the machine, and the command line."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per rollout batch, on one line each. The first is the evaluation before training."""
        return self.path / "metrics.jsonl"

    @property
    def profile(self) -> Path:
        """One JSON object per rollout batch: clipping and drift by position (docs/reference/diagnostics.md)."""
        return self.path / "profile.jsonl"

    @property
    def summary(self) -> Path:
        """The result of the run. The file exists only once the run is complete."""
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        """The folder of the trained model and its tokenizer, as transformers saves them."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The folder of the trained LoRA adapter, as peft saves it; `model` is then merged with it."""
        return self.path / "adapter"

    @property
    def critic(self) -> Path:
        """What a critic has learned, if the run had one (docs/how-to/critic.md)."""
        return self.path / "critic.safetensors"

    @property
    def curve(self) -> Path:
        """The picture of the learning curve."""
        return self.path / "curve.png"

    def transcripts(self, batch: int) -> Path:
        """Return the path of the held-out responses that were sampled after this many rollout batches."""
        return self.path / "transcripts" / f"batch-{batch:04d}.jsonl"

    def samples(self, batch: int) -> Path:
        """Return the path of training responses of this rollout batch's last update, token by token."""
        return self.path / "samples" / f"batch-{batch:04d}.jsonl"

    @property
    def holds_a_run(self) -> bool:
        """Whether a run was started in this directory."""
        return self.config.exists() or self.metrics.exists()

    def open(self, recipe: dict[str, Any], environment: dict[str, Any], *, new: bool = False) -> None:
        """Make the directory if there is none, and write the recipe and the environment of the run.

        Args:
            recipe, environment: what to write.
            new: whether a run that is there by now is left alone. It may have come while this one was prepared.

        Raises:
            UserError: if they cannot be written, or if `new` and there is a run.
        """
        import yaml

        if new:
            self._check_no_run()
        try:
            write_text(self.config, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
            write_json(self.environment, environment)
        except OSError as error:
            raise UserError(
                f"output_dir={self.path} cannot be written ({error.strerror}); choose another"
            ) from None

    def check_free(self) -> None:
        """Check that a new run may use this directory.

        Raises:
            UserError: if it holds a run or other files, or cannot be used.
        """
        try:
            self._check_no_run()
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"output_dir={self.path} is a file; choose a directory")
            # Old checkpoints are removed during a run, and those of somebody else would be among them.
            if self.path.is_dir() and any(each.suffix != PARTIAL for each in self.path.iterdir()):
                raise UserError(f"output_dir={self.path} is not empty; choose a directory of the run's own")
            missing = [each for each in (self.path, *self.path.parents) if not each.exists()]
            self.path.mkdir(parents=True, exist_ok=True)  # can it be made?
            for each in missing:
                with suppress(OSError):  # another run may have begun there meanwhile
                    each.rmdir()
        except OSError as error:
            raise UserError(
                f"output_dir={self.path} cannot be used ({error.strerror}); choose another"
            ) from None

    def _check_no_run(self) -> None:
        if self.holds_a_run:
            raise UserError(
                f"output_dir={self.path} already holds a run; choose another, or continue it with "
                f"`{resume_words(self.path)}`"
            )

    def set_aside(self) -> Path:
        """Move the records and checkpoints of the run into a folder of their own below, and return the folder.

        Everything is renamed, so nothing is lost and nothing is copied.

        Raises:
            UserError: if the directory cannot be written, or if its `config.yaml` is somebody's own file.
        """
        if not (self.environment.exists() or self.metrics.exists()):
            raise UserError(
                f"output_dir={self.path} holds a {self.config.name} that no run wrote, and a run would replace it; "
                "choose another output_dir, or records=False"
            )
        places = (self.path / ASIDE / f"run-{number}" for number in itertools.count(1))
        place = next(each for each in places if not each.exists())
        files = (self.config, self.environment, self.metrics, self.profile, self.summary, self.curve)
        folders = (self.transcripts(0).parent, self.samples(0).parent, *all_checkpoints(self.path))
        try:
            place.mkdir(parents=True)
            for each in (*files, *folders):
                if each.exists():
                    each.rename(place / each.name)
        except OSError as error:
            raise UserError(
                f"output_dir={self.path} holds a run that cannot be set aside ({error.strerror}); choose another"
            ) from None
        return place

    def read_recipe(self) -> dict[str, Any]:
        """Return the recipe that the run was started with.

        Raises:
            UserError: if this is not a run's directory, or the recipe cannot be read.
        """
        from ctpo.runs.yaml_text import read_yaml

        try:
            recipe = read_yaml(self.config)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.path} is not a run (it has no {self.config.name}); give a run's directory"
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self.config} is damaged ({reason}); start a new run") from None
        if not isinstance(recipe, dict):
            raise UserError(f"{self.config} is damaged (not a mapping); start a new run")
        return recipe

    def last_checkpoint(self) -> Path | None:
        """Return the newest undamaged checkpoint, or None."""
        return last_good(self.path)

    def append(self, record: dict[str, Any], profile: dict[str, Any] | None = None) -> None:
        """Add the record of one rollout batch to the metrics, and its position profile, if any, to the profiles.

        The profile is written first, so that a kill in between never leaves a record without its profile.
        """
        if profile is not None:
            append_json_line(self.profile, {"batch": record["batch"], "step": record["step"], **profile})
        append_json_line(self.metrics, _without_nan(record))

    def records(self) -> list[dict[str, Any]]:
        """Return the records written so far; see `read_records`."""
        return read_records(self.metrics)

    def rewind(self, step: int, updates: int, *, from_start: bool = True) -> list[dict[str, Any]]:
        """Remove the records after an optimizer step, which a resumed run will write again; return those kept.

        Args:
            step: the optimizer steps done.
            updates: the optimizer steps per rollout batch.
            from_start: whether the records must begin before the first update. Those of a script that went on from
                another run's checkpoint do not.

        Raises:
            UserError: if a record before that step is missing, or is there twice.
        """
        # A training that ended within a batch goes on there, and will write the record of the whole batch.
        kept = [record for record in self.records() if record["step"] <= step and "updates" not in record]
        first = 0 if from_start or not kept else kept[0]["step"]
        expected = [*range(first, step + 1, updates)] if kept or (step and from_start) else []
        missing = sorted(set(expected) - {record["step"] for record in kept})
        if missing or len(kept) != len(expected):
            problem = f"lacks the record of update {missing[0]}" if missing else "holds a record twice"
            raise UserError(f"{self.metrics} {problem}; restore the file, or start a new run")
        steps = {record["step"] for record in kept}
        profiles = [line for line in read_records(self.profile) if line["step"] in steps]
        if profiles or self.profile.exists():
            write_json_lines(self.profile, profiles)
        write_json_lines(self.metrics, kept)
        return kept

    def read_logs(self) -> dict[Path, str]:
        """Return the texts of the records and the profiles, as `restore_logs` takes them."""
        logs = (self.metrics, self.profile)
        return {path: read_text(path) for path in logs if path.is_file()}

    def restore_logs(self, texts: Mapping[Path, str]) -> None:
        """Write the records and the profiles again that `rewind` cut off."""
        for path, text in texts.items():
            write_text(path, text)

    def check_figures(self, step: int, first: Sequence[str] = EVALUATED) -> None:
        """Check that the records up to an optimizer step hold numbers where the rest of a run computes with them.

        Args:
            step: the optimizer step.
            first: figures that the first record has beside those of all records.

        Raises:
            UserError: if one does not.
        """
        for record in self.records():
            if record["step"] <= step and (odd := _odd_entry(record, first)):
                raise UserError(
                    f"{self.metrics} is damaged ({odd} of step {record['step']} is {record.get(odd)!r}); restore the "
                    "file, or start a new run"
                )

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write the result of the run, which marks it as complete."""
        write_json(self.summary, summary)

    def write_transcripts(self, batch: int, rows: Iterable[dict[str, Any]]) -> None:
        """Write the held-out responses that were sampled after this many rollout batches."""
        write_json_lines(self.transcripts(batch), rows)

    def write_samples(self, batch: int, rows: Iterable[dict[str, Any]]) -> None:
        """Write training responses of this rollout batch token by token, one JSON object per response."""
        write_json_lines(self.samples(batch), rows)

    def read_transcripts(self, batch: int) -> list[dict[str, Any]]:
        """Return what `write_transcripts` wrote; an empty list if it wrote nothing. Damaged lines are left out."""
        path = self.transcripts(batch)
        lines = read_json_lines(path) if path.is_file() else []
        return [line.record for line in lines if line.record is not None]


def default_run_path(keys: Mapping[str, Any]) -> Path:
    """Return `runs/<task>-<objective>-s<seed>-<time>`, the directory of a run that names none."""
    task, objective, seed = (
        keys.get("task", "arithmetic"),
        keys.get("objective", "ctpo"),
        keys.get("seed", 42),
    )
    return Path("runs") / f"{task}-{objective}-s{seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that holds one record per rollout batch.

    A last line without a line feed was cut short by a kill and is left out. There are no lines if there is no file.

    Raises:
        UserError: if another line is damaged.
    """
    records = []
    try:
        lines = read_json_lines(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore it, or start a new run") from None
    for line in lines:
        if not line.complete:
            continue
        if line.record is None or type(line.record.get("step")) is not int:
            raise UserError(f"{path} line {line.number} is damaged; restore it, or start a new run")
        records.append(line.record)
    return records


def _odd_entry(record: Mapping[str, Any], first: Sequence[str]) -> str | None:
    """Return the name of an entry of a record that is no figure and should be one; None if there is none."""
    needed = ("batch", "step", "seconds", *(first if record.get("batch") == 0 else ()))
    for name in needed:
        if name not in record or record[name] is None:
            return name
    figures = {*needed, *_SHOWN} | {
        name for name in record if name.startswith("heldout_") or name.endswith("_s")
    }
    for name in sorted(figures & record.keys()):
        value = record[name]
        if name in _FLAGS:
            if not isinstance(value, bool):
                return name
            continue
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return name
        if value is not None and not abs(value) < _LARGEST:
            return name
    return None


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with null for NaN and infinity, which JSON does not have."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
