"""The mathematics tasks of this package: datasets on the hub, with their ids and columns.

Splits and columns are those of the datasets' cards. Loading them needs the network.
"""

from __future__ import annotations

from ctpo.tasks.columns import Columns
from ctpo.tasks.math import MathCheck, reference_answer
from ctpo.tasks.math.check import extract
from ctpo.tasks.prompts import HOW_TO_CALL
from ctpo.tasks.sources import DatasetSource, HubDataset
from ctpo.tasks.task import Task
from ctpo.tasks.tool import CHAT_TOOL

_SYSTEM = f"Solve the problem step by step. {HOW_TO_CALL} Put the final answer in \\boxed{{}}."
_USUAL = Columns()


def math_task(name: str, source: DatasetSource) -> Task:
    """A task of mathematical problems: a conversation with the Python tool, and answers judged by `MathCheck`."""
    return Task(
        name=name,
        problems=source,
        check=MathCheck(),
        tool=CHAT_TOOL,
        system=_SYSTEM,
        extract=extract,
    )


def _task(name: str, *hub: HubDataset, columns: Columns = _USUAL) -> Task:
    return math_task(name, DatasetSource(name=name, hub=hub, columns=columns, answer=reference_answer))


def _competition(dataset: str) -> HubDataset:
    return HubDataset(id=dataset, splits={"test": "train"})  # these have one split, which is called train


_HMMT_FEBRUARY = _competition("MathArena/hmmt_feb_2025")
_HMMT_NOVEMBER = _competition("MathArena/hmmt_nov_2025")

MATHEMATICS = (
    _task(
        "gsm8k",
        HubDataset(id="openai/gsm8k", config="main", splits={"train": "train", "test": "test"}),
        columns=Columns(prompt="question"),
    ),
    _task(
        "math500",
        HubDataset(id="HuggingFaceH4/MATH-500", splits={"test": "test"}),
        columns=Columns(prompt="problem", id="unique_id"),
    ),
    _task("aime24", _competition("HuggingFaceH4/aime_2024")),
    _task("aime25", _competition("MathArena/aime_2025")),
    _task("aime26", _competition("MathArena/aime_2026")),
    _task("brumo25", _competition("MathArena/brumo_2025")),
    _task("hmmt25", _HMMT_FEBRUARY, _HMMT_NOVEMBER),
    _task("hmmt25-feb", _HMMT_FEBRUARY),
    _task("hmmt25-nov", _HMMT_NOVEMBER),
    _task(
        "deepscaler",
        HubDataset(id="agentica-org/DeepScaleR-Preview-Dataset", splits={"train": "train"}),
        columns=Columns(prompt="problem"),
    ),
)
