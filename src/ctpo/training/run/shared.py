"""What the runs of a comparison need to work out only once: a tool's answers, and the evaluation before training.

Runs with the same seed ask a calculator mostly the same things, and all runs start from the same weights. Sharing
changes no result. An answer is shared only if running the program again would give it again. An evaluation is stored
under a digest of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from ctpo.errors import UserError
from ctpo.evaluation.model import HELDOUT_SEED
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import LASTING, Runs, ToolRunner
from ctpo.runs.atomic import write_json
from ctpo.runs.files import read_text
from ctpo.sandbox import SandboxResult
from ctpo.tasks import Problem
from ctpo.training.config.recipe import Recipe

_ANSWERS: Final = "answers.sqlite"
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS answers (place TEXT, program TEXT, status TEXT, stdout TEXT, stderr TEXT, "
    "PRIMARY KEY (place, program)) WITHOUT ROWID"
)
_AT_ONCE: Final = 500
"""Programs per query: SQLite takes at most 999 parameters."""
_WAIT_S: Final = 60.0
"""Seconds to wait while another run writes."""


class SharedAnswers:
    """A sandbox that runs a program only if no run before has stored its answer.

    It keeps nothing in memory: a `ToolRunner` asks it only for programs that are new to its own run.

    Args:
        sandbox: runs the programs without a stored answer.
        path: the database. Several processes may use it at the same time.
        place: everything else that an answer depends on, as one string.

    Raises:
        UserError: if the database cannot be used.
    """

    def __init__(self, sandbox: Runs, path: Path, place: str) -> None:
        self._sandbox, self._path, self._place = sandbox, path, place
        with self._usable():
            path.parent.mkdir(parents=True, exist_ok=True)
            # With autocommit no lock is held between statements.
            self._database = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            # What a power cut loses will be worked out again.
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute(_TABLE)

    def run(self, programs: list[str]) -> list[SandboxResult]:
        """The results in the order of the programs, as the sandbox would give them."""
        answers = self._read(programs)
        unknown = [program for program in programs if program not in answers]
        if unknown:
            results = dict(zip(unknown, self._sandbox.run(unknown), strict=True))
            self._write({program: each for program, each in results.items() if each.status in LASTING})
            answers |= results
        return [answers[program] for program in programs]

    def _read(self, programs: Sequence[str]) -> dict[str, SandboxResult]:
        answers: dict[str, SandboxResult] = {}
        with self._usable():
            for first in range(0, len(programs), _AT_ONCE):
                some = programs[first : first + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                query = f"SELECT program, status, stdout, stderr FROM answers WHERE place = ? AND program IN ({marks})"
                rows = self._database.execute(query, (self._place, *some))
                answers |= {row[0]: SandboxResult(row[1], row[2], row[3], wall_s=0.0) for row in rows}
        return answers

    def _write(self, answers: dict[str, SandboxResult]) -> None:
        rows = [(self._place, program, e.status, e.stdout, e.stderr) for program, e in answers.items()]
        with self._usable():
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            self._database.execute("COMMIT")

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{self._path} cannot be used ({error}); delete it, or give another shared"
            ) from None


def share_answers(tools: ToolRunner | None, recipe: Recipe) -> None:
    """Let a deterministic tool take answers from the other runs of `recipe.shared`, and give them its own.

    Does nothing if the recipe shares nothing, or if the task has no deterministic tool.

    Raises:
        UserError: if the database of answers cannot be used.
    """
    if recipe.shared is None or tools is None or tools.sandbox is None:
        return
    if tools.tool is None or not tools.tool.deterministic:
        return
    place = _digest(sys.version, recipe.tool_memory_mb, recipe.unsafe_no_isolation)[:16]
    tools.sandbox = SharedAnswers(tools.sandbox, recipe.shared / _ANSWERS, place)


def shared_evaluation(
    recipe: Recipe,
    model: torch.nn.Module,
    problems: Sequence[Problem],
    sampling: Sampling,
    measure: Callable[[], dict[str, float]],
) -> dict[str, float]:
    """The figures of an evaluation: those that another run stored, or what `measure` returns.

    They are shared by runs with the same weights, problems, sampling and tool settings. A run that keeps transcripts
    always measures, because those are files of its own.
    """
    if recipe.shared is None or recipe.transcripts:
        return measure()
    names = (
        *("task", "tools", "rollout_batch_size", "tool_timeout_s", "tool_memory_mb", "unsafe_no_isolation"),
        "eval_stderr",
    )
    digest = _digest(
        *(torch.__version__, torch.get_num_threads(), HELDOUT_SEED, asdict(sampling)),
        *(getattr(recipe, name) for name in names),
        *([asdict(problem) for problem in problems], _weights(model)),
    )
    path = recipe.shared / f"before-{digest[:16]}.json"
    try:
        figures: dict[str, float] = json.loads(read_text(path))
    except (OSError, ValueError):
        figures = measure()
        write_json(path, figures)
    return figures


def _weights(model: torch.nn.Module) -> str:
    """A digest of all weights: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}:{weight.dtype}:{list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
