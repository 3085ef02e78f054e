"""The problems of dataset tasks, from the hub or from files in its place."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ctpo.errors import Notice, UserError
from ctpo.extras import require
from ctpo.tasks.columns import Columns, read_problems
from ctpo.tasks.repeats import tell_repeats
from ctpo.tasks.rows import SUFFIXES, Row, read_rows
from ctpo.tasks.task import Problem, validate_request


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """Splits of one dataset on the hub."""

    id: str
    """`owner/name`."""
    splits: Mapping[str, str]
    """The dataset's own name of each of our splits ("train", "test"). A split that is not here does not exist."""
    config: str | None = None

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The rows of a split. The first call downloads it into the hub's cache.

        Raises:
            UserError: if it cannot be downloaded.
        """
        require(f"dataset {self.id}", "train", "datasets")
        import datasets

        try:
            loaded = datasets.load_dataset(self.id, self.config, split=self.splits[split])
        except Exception as error:  # the hub's client raises what its HTTP library raises
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise UserError(
                f"dataset {self.id} cannot be loaded from the hub ({reason}); connect, or give a file: NAME@PATH"
            ) from None
        return [dict(row) for row in loaded]


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A `ProblemSource` that reads hub datasets, or local files in their place.

    The test split keeps the order of the dataset, so a limit of n takes its first n problems. The training split has an
    order drawn from the seed.
    """

    name: str
    hub: tuple[HubDataset, ...] = ()
    path: Path | None = None
    """A file, which is used as test split, or a directory with train.jsonl and test.jsonl (or .parquet, .csv, …)."""
    columns: Columns = field(default_factory=Columns)
    answer: Callable[[str], str] = str
    """Makes the reference answer from the text of the answer column."""

    def __call__(self, split: str, count: int, seed: int) -> list[Problem]:
        validate_request(split, count)
        problems = self._hub_problems(split) if self.path is None else self._file_problems(self.path, split)
        if split == "train":
            random.Random(f"{self.name}/{seed}").shuffle(problems)
        return problems[:count]

    def rows(self, split: str) -> list[Row]:
        """The rows of a split as they are, in the order of the dataset.

        Raises:
            UserError: if there is no such split, or it cannot be read.
        """
        if self.path is not None:
            return read_rows(self._file(self.path, split))
        return [row for part in self._parts(split) for row in _hub_rows(part, split)]

    def _file_problems(self, path: Path, split: str) -> list[Problem]:
        return read_problems(self._file(path, split), self.columns, self.answer)

    def _file(self, path: Path, split: str) -> Path:
        """The file that holds a split."""
        if not path.is_dir():
            if split == "train":
                raise self._no_split(split, f"{path} serves as test split only")
            return path
        files = [path / f"{split}{suffix}" for suffix in SUFFIXES if (path / f"{split}{suffix}").is_file()]
        if not files:
            raise self._no_split(split, f"{path} holds no {split}.jsonl or {split}.parquet")
        return files[0]

    def _parts(self, split: str) -> list[HubDataset]:
        parts = [part for part in self.hub if split in part.splits]
        if not parts:
            raise self._no_split(split, "the dataset has none")
        return parts

    def _hub_problems(self, split: str) -> list[Problem]:
        problems: list[Problem] = []
        for part in self._parts(split):
            skipped: list[str] = []
            for row in _hub_rows(part, split):
                try:
                    problems.append(
                        self.columns.problem(row.columns, row.place, str(row.number), self.answer)
                    )
                except UserError as error:
                    skipped.append(str(error))
            _report(part.id, skipped, len(problems))
        unique = _with_unique_ids(self.name, problems)
        tell_repeats(f"task {self.name!r}", unique)
        return unique

    def _no_split(self, split: str, why: str) -> UserError:
        advice = "dataset=FILE for training problems" if split == "train" else "eval_dataset=FILE"
        return UserError(
            f"task {self.name!r} has no {split} split ({why}); give {advice}, or NAME@DIRECTORY with {split}.jsonl"
        )


def _hub_rows(part: HubDataset, split: str) -> list[Row]:
    return [
        Row(columns=row, number=number, place=f"dataset {part.id} row {number}")
        for number, row in enumerate(part.rows(split))
    ]


def _report(dataset: str, skipped: list[str], kept: int) -> None:
    if not kept:
        raise UserError(skipped[0] if skipped else f"dataset {dataset} is empty")
    if skipped:  # a user cannot correct a row of somebody else's dataset, so such rows are left out
        warnings.warn(f"{len(skipped)} rows left out, the first: {skipped[0]}", Notice, stacklevel=2)


def _with_unique_ids(name: str, problems: list[Problem]) -> list[Problem]:
    """The problems with ids that do not repeat. Several competitions in one task all count their problems from 1."""
    ids = [problem.id for problem in problems]
    unique = len(set(ids)) == len(ids)
    return [replace(each, id=f"{name}-{each.id if unique else i}") for i, each in enumerate(problems)]
