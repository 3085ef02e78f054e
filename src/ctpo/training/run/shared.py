"""What the runs of a comparison find out once for all: answers of a deterministic tool, and how good the model is
before training.

Runs with the same seed ask a calculator mostly the same things, and all start from the same weights. Nothing here
changes a result: an answer is kept only where running the program again would give it again, an evaluation only
under a digest of everything it depends on.
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
from typing import Any

import torch

from ctpo.errors import UserError
from ctpo.evaluation.model import HELDOUT_SEED
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import LASTING, Runs, ToolRunner
from ctpo.runs.atomic import write_json
from ctpo.sandbox import SandboxResult
from ctpo.tasks import Problem
from ctpo.training.config.recipe import Recipe

_ANSWERS = "answers.sqlite"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (place TEXT, program TEXT, status TEXT, stdout TEXT, stderr TEXT, "
    "PRIMARY KEY (place, program)) WITHOUT ROWID"
)
_AT_ONCE = 500  # SQLite takes 999 parameters a statement
_WAIT_S = 60.0  # for another run that is writing


class KnownAnswers:
    """A sandbox that runs only programs whose answer no run before has written down.

    Args:
        sandbox: runs the others.
        path: the database; several processes may use it at once.
        place: what else an answer depends on.

    Raises:
        UserError: if the database cannot be used.
    """

    def __init__(self, sandbox: Runs, path: Path, place: str) -> None:
        self._sandbox, self._path, self._place = sandbox, path, place
        self._new: dict[str, SandboxResult] = {}
        with self._usable():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: no lock is held between statements.
            self._base = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            self._base.execute("PRAGMA synchronous = OFF")  # what a power cut loses is found out again
            self._base.execute(_TABLE)

    def run(self, programs: list[str]) -> list[SandboxResult]:
        """Results in the same order, as the sandbox would give them."""
        known = {program: self._new[program] for program in programs if program in self._new}
        known |= self._read([program for program in programs if program not in known])
        unknown = [program for program in programs if program not in known]
        if unknown:
            results = dict(zip(unknown, self._sandbox.run(unknown), strict=True))
            self._new |= {program: each for program, each in results.items() if each.status in LASTING}
            known |= results
        if len(self._new) >= _AT_ONCE:
            self.write()
        return [known[program] for program in programs]

    def write(self) -> None:
        """Let other runs know what this one has found out."""
        rows = [(self._place, program, e.status, e.stdout, e.stderr) for program, e in self._new.items()]
        with self._usable():
            self._base.execute("BEGIN IMMEDIATE")
            self._base.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
            self._base.execute("COMMIT")
        self._new.clear()

    def _read(self, programs: Sequence[str]) -> dict[str, SandboxResult]:
        found: dict[str, SandboxResult] = {}
        with self._usable():
            for first in range(0, len(programs), _AT_ONCE):
                some = programs[first : first + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                query = f"SELECT program, status, stdout, stderr FROM answers WHERE place = ? AND program IN ({marks})"
                rows = self._base.execute(query, (self._place, *some))
                found |= {row[0]: SandboxResult(row[1], row[2], row[3], wall_s=0.0) for row in rows}
        return found

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{self._path} cannot be used ({error}); delete it, or give another shared"
            ) from None


@contextmanager
def shared_answers(tools: ToolRunner | None, recipe: Recipe) -> Iterator[None]:
    """Have a deterministic tool answer from what other runs of `recipe.shared` know, and tell them what is new."""
    if recipe.shared is None or tools is None or not tools.tool.deterministic:
        yield
        return
    place = _digest(sys.version, recipe.tool_memory_mb, recipe.unsafe_no_isolation)[:16]
    known = KnownAnswers(tools.sandbox, recipe.shared / _ANSWERS, place)
    tools.sandbox = known
    yield
    known.write()


def shared_evaluation(
    recipe: Recipe,
    model: torch.nn.Module,
    problems: Sequence[Problem],
    sampling: Sampling,
    measure: Callable[[], dict[str, float]],
) -> dict[str, float]:
    """What `measure` found for these weights, these problems and this sampling the first time."""
    if recipe.shared is None or recipe.transcripts:  # those are files of the run's own
        return measure()
    names = ("task", "rollout_batch_size", "tool_timeout_s", "tool_memory_mb", "unsafe_no_isolation")
    told = (
        *(torch.__version__, torch.get_num_threads(), HELDOUT_SEED, asdict(sampling)),
        *(getattr(recipe, name) for name in names),
        *([asdict(problem) for problem in problems], _weights(model)),
    )
    path = recipe.shared / f"before-{_digest(*told)[:16]}.json"
    try:
        figures: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return figures
    except (OSError, ValueError):
        figures = measure()
    write_json(path, figures)
    return figures


def _weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}:{weight.dtype}:{list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(*told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
