"""One evaluation against another on the same problems: `ctpo eval --against`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctpo.errors import UserError
from ctpo.evaluation.judged import JudgedResponse
from ctpo.evaluation.metrics import mean_and_error
from ctpo.evaluation.stored import Folder, Group, align, complete_groups


@dataclass(frozen=True, kw_only=True)
class Against:
    """The responses of another evaluation, for comparison."""

    path: Path
    """The `--output` directory of the other evaluation."""
    responses: Mapping[str, Sequence[Group]]
    """Under the name of each task, its responses to each problem."""

    def difference(self, task: str, responses: Sequence[JudgedResponse], samples: int) -> dict[str, Any]:
        """The mean over common problems of score − other score, with its standard error.

        The score of a problem is the mean over its samples. The problems are the same, so the two scores are not
        independent, and the errors of the two evaluations do not give that of the difference.

        Args:
            task: the task's name.
            responses: problem by problem, `samples` for each.

        Returns:
            `directory` of the other evaluation; `problems`, how many the two have in common, by id and prompt; and if
            there are some, `mean` and `stderr`, and `better` and `worse`: on how many problems the score is above or
            below the other's.

        Example:
            against.difference("gsm8k", responses, 1)
            # {"directory": "before", "problems": 1319, "mean": 0.02, "stderr": 0.008, "better": 65, "worse": 38}
        """
        groups = [list(responses[i : i + samples]) for i in range(0, len(responses), samples)]
        matched = align(self.responses[task], [group[0].problem for group in groups]).groups
        gains = [_score(mine) - _score(other) for mine, other in zip(groups, matched, strict=True) if other]
        figures: dict[str, Any] = {"directory": str(self.path), "problems": len(gains)}
        if gains:
            figures["mean"], figures["stderr"] = mean_and_error(gains)
            figures["better"], figures["worse"] = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
        return figures


def read_against(path: Path, tasks: Sequence[str]) -> Against:
    """The evaluation in a directory, for comparison with one of these tasks.

    Args:
        path: the `--output` directory of the other evaluation.
        tasks: the names of the present tasks. If both evaluations have one task, its names may differ.

    Raises:
        UserError: if the directory holds no evaluation, lacks one of the tasks, or has no responses to it.
    """
    if not path.is_dir():
        raise UserError(f"--against {path} is not a directory; give the --output directory of an evaluation")
    folder = Folder(path)
    stored = folder.read(earlier=True)
    if not stored:
        raise UserError(f"--against {path} holds no evaluation; give the --output directory of one")
    names = list(stored) if len(stored) == len(tasks) == 1 else tasks
    responses: dict[str, Sequence[Group]] = {}
    for task, name in zip(tasks, names, strict=True):
        if name not in stored:
            raise UserError(
                f"--against {path} holds {', '.join(stored)}, not {name}; give an evaluation of the same tasks"
            )
        responses[task] = complete_groups(folder.transcripts(name, len(stored)), stored[name].samples)
        if not responses[task]:
            raise UserError(
                f"--against {path} holds no complete responses to {name}; continue it with --output"
            )
    return Against(path=path, responses=responses)


def _score(group: Group) -> float:
    return sum(response.score for response in group) / len(group)
