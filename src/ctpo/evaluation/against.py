"""One evaluation against another on the same problems: `ctpo eval --against`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctpo.errors import UserError
from ctpo.evaluation.identity import judged_with
from ctpo.evaluation.judged import JudgedResponse
from ctpo.evaluation.metrics import mean_and_error
from ctpo.evaluation.stored import Folder, Group, align, check_lines, complete_groups
from ctpo.tasks import Problem, Task


@dataclass(frozen=True, kw_only=True)
class Against:
    """The responses of another evaluation, for comparison."""

    path: Path
    """The `--output` directory of the other evaluation."""
    responses: Mapping[str, Sequence[Group]]
    """Under the name of each task, its responses to each problem."""
    judged: Mapping[str, str]
    """Under the name of each task, what judged them (`ctpo.evaluation.identity.judged_with`)."""

    def check(self, tasks: Mapping[str, Task], problems: Mapping[str, Sequence[Problem]]) -> list[str]:
        """Check that there is something to compare, and return what the user should know, in sentences.

        Args:
            tasks, problems: of the present evaluation, by the names of the tasks.

        Raises:
            UserError: if a task has no problem in common with the other evaluation.
        """
        sentences = []
        again = f"judge it again: ctpo eval --rejudge {self.path}"
        for name, task in tasks.items():
            fit = align(self.responses[name], problems[name])
            if not any(fit.groups):
                raise UserError(
                    f"--against {self.path} has no problem in common with {name}; evaluate both on the same ones"
                )
            if self.judged[name] != judged_with(task):
                sentences.append(f"{name}: another check has judged {self.path}; {again}")
            elif fit.new_answers:
                count = len(fit.new_answers)
                sentences.append(
                    f"{name}: {self.path} has other reference answers for {count} of the problems; {again}"
                )
        return sentences

    def difference(self, task: str, responses: Sequence[JudgedResponse], samples: int) -> dict[str, Any]:
        """The mean over common problems of score − other score, with its standard error.

        The score of a problem is the mean over its samples. The problems are the same, so the two scores are not
        independent, and the errors of the two evaluations do not give that of the difference.

        Args:
            task: the task's name.
            responses: problem by problem, `samples` for each.

        Returns:
            `directory` of the other evaluation; `problems`, how many the two have in common, by id and prompt; `mean`
            and `stderr`; and `better` and `worse`: on how many problems the score is above or below the other's.

        Example:
            against.difference("gsm8k", responses, 1)
            # {"directory": "before", "problems": 1319, "mean": 0.02, "stderr": 0.008, "better": 65, "worse": 38}
        """
        groups = [list(responses[i : i + samples]) for i in range(0, len(responses), samples)]
        matched = align(self.responses[task], [group[0].problem for group in groups]).groups
        gains = [_score(mine) - _score(other) for mine, other in zip(groups, matched, strict=True) if other]
        mean, stderr = mean_and_error(gains)
        return {
            "directory": str(self.path),
            "problems": len(gains),
            "mean": mean,
            "stderr": stderr,
            "better": sum(gain > 0 for gain in gains),
            "worse": sum(gain < 0 for gain in gains),
        }


def read_against(path: Path, tasks: Sequence[str], present: Path | None = None) -> Against:
    """The evaluation in a directory, for comparison with one of these tasks.

    Args:
        path: the `--output` directory of the other evaluation.
        tasks: the names of the present tasks. If both evaluations have one task, its names may differ.
        present: the directory of the present evaluation, if it has one.

    Raises:
        UserError: if the directory holds no evaluation or is the present one, lacks one of the tasks, has no responses
            to it, or is damaged.
    """
    if not path.is_dir():
        raise UserError(f"--against {path} is not a directory; give the --output directory of an evaluation")
    if present is not None and path.resolve() == present.resolve():
        raise UserError(f"--against {path} is the evaluation itself; give the directory of another")
    folder = Folder(path, "--against")
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
        file = folder.transcripts(name, len(stored))
        check_lines(file)
        responses[task] = complete_groups(file, stored[name].samples)
        if not responses[task]:
            raise UserError(
                f"--against {path} holds no complete responses to {name}; continue it with --output"
            )
    judged = {task: stored[name].judged for task, name in zip(tasks, names, strict=True)}
    return Against(path=path, responses=responses, judged=judged)


def _score(group: Group) -> float:
    return sum(response.score for response in group) / len(group)
