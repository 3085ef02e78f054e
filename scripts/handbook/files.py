"""The page of the files that runs and evaluations leave."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ctpo.evaluation import stored
from ctpo.runs.directory import RunDirectory
from handbook.markdown import escaped, linked, table

_INTRODUCTION: Final = """\
# Files

This page is made from the code. All text files are UTF-8. A file `.jsonl` holds one JSON object per line, and JSON's
`null` stands for NaN and infinity. A file that a reader may depend on is replaced whole, so a run that is killed leaves
no half of one.

## The directory of a run

`ctpo train` writes it, and so does `CTPOTrainer` in a Python script ([what differs](../how-to/python.md)).
"""
_AFTER: Final = """\
| place | what it holds |
|---|---|
| `checkpoint-N/` | what a resumed run continues from, after N updates ([resuming](../how-to/resume.md)) |
| `set-aside/` | records and checkpoints of a run before, or after the checkpoint that a run was resumed from |
| `fidelity/` | what `ctpo fidelity` measured ([fidelity](../how-to/fidelity.md)) |
| `report.html` | the page of `ctpo report` ([reports](../how-to/report.md)) |
| `README.md` | the model card |

[Training](training.md#what-a-run-writes) gives the keys of `metrics.jsonl` and `summary.json`,
[diagnostics](diagnostics.md) those of `profile.jsonl` and `samples/`, and [statistics](statistics.md) all names in one
list.

## The directory of an evaluation

`ctpo eval --output DIR` writes it.

"""


def page() -> str:
    """The whole page in Markdown."""
    return "\n".join(
        [
            _INTRODUCTION,
            table(["file", "what it holds"], _run_files()),
            _AFTER,
            f"```text\n{inspect.getdoc(stored)}\n```\n",
        ]
    )


def _run_files() -> Iterator[list[str]]:
    """The files of a run, with what the code says of each."""
    run = RunDirectory(Path("RUN"))
    for name, member in vars(RunDirectory).items():
        if isinstance(member, property):
            value, about = getattr(run, name), member.fget
        elif name in ("transcripts", "samples"):
            value, about = Path(str(getattr(run, name)(0)).replace("0000", "NNNN")), member
        else:
            continue
        if isinstance(value, Path):
            text = (inspect.getdoc(about) or "").removeprefix("Return the path of ")
            yield [
                f"`{value.relative_to('RUN')}`",
                linked(escaped(text[:1].upper() + text[1:])),
            ]
