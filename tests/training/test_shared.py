"""Sharing between the runs of a comparison changes no result, only how often something is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.errors import UserError
from ctpo.rollout.sampling import Sampling
from ctpo.sandbox import SandboxResult
from ctpo.tasks import Problem
from ctpo.training.config.recipe import Recipe
from ctpo.training.run.shared import SharedAnswers, shared_evaluation


class Recording:
    """A sandbox that keeps a list of the programs it gets. `give`, if set, is its answer to all of them."""

    def __init__(self, sandbox: Any, give: SandboxResult | None = None) -> None:
        self.sandbox, self.give, self.asked = sandbox, give, []

    def run(self, programs: list[str]) -> list[SandboxResult]:
        self.asked.append(programs)
        return [self.give] * len(programs) if self.give else self.sandbox.run(programs)


def texts(results: list[SandboxResult]) -> list[tuple[str, str, str]]:
    return [(result.status, result.stdout, result.stderr) for result in results]


def test_a_program_that_another_run_has_run_is_answered_alike(sandbox: Any, tmp_path: Path) -> None:
    one, other, elsewhere = Recording(sandbox), Recording(sandbox), Recording(sandbox)
    path = tmp_path / "answers.sqlite"
    programs = ["print(1+2)", "1/0", "print('ü')", "print(1+2)"]
    first = SharedAnswers(one, path, "here")
    expected = texts(first.run(programs))
    assert [status for status, _, _ in expected] == ["ok", "error", "ok", "ok"]
    assert texts(first.run(programs)) == expected
    assert texts(SharedAnswers(other, path, "here").run([*programs, "print(4)"])) == [
        *expected, ("ok", "4\n", ""),
    ]  # fmt: skip
    SharedAnswers(elsewhere, path, "with less memory").run(programs[:1])
    assert (one.asked, other.asked, elsewhere.asked) == ([programs], [["print(4)"]], [["print(1+2)"]])


def test_an_answer_that_depends_on_load_is_not_kept(sandbox: Any, tmp_path: Path) -> None:
    late = Recording(sandbox, SandboxResult("timeout", "", "", 3.0))
    known = SharedAnswers(late, tmp_path / "answers.sqlite", "here")
    known.run(["print(1)"])
    again = Recording(sandbox)
    assert SharedAnswers(again, tmp_path / "answers.sqlite", "here").run(["print(1)"])[0].ok
    assert again.asked == [["print(1)"]]


def test_a_damaged_file_is_named(sandbox: Any, tmp_path: Path) -> None:
    (tmp_path / "answers.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(UserError, match=r"answers.sqlite cannot be used .*; delete it"):
        SharedAnswers(sandbox, tmp_path / "answers.sqlite", "here")


def test_an_evaluation_is_another_as_soon_as_anything_it_depends_on_is(tmp_path: Path) -> None:
    counted: list[int] = []

    def figures(recipe: Recipe, weight: float, problem: str, temperature: float) -> float:
        def measure() -> dict[str, float]:
            counted.append(1)
            return {"heldout_pass@1": float(len(counted))}

        model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(model.weight, weight)
        torch.nn.init.zeros_(model.bias)
        sampling = Sampling(max_new_tokens=4, temperature=temperature)
        problems = [Problem(prompt=problem, answer="1", id="p")]
        return shared_evaluation(recipe, model, problems, sampling, measure)["heldout_pass@1"]

    recipe = Recipe(shared=tmp_path, transcripts=0)
    assert [figures(recipe, 1.0, "1=", 1.0) for _ in range(2)] == [1, 1]
    assert figures(recipe, 2.0, "1=", 1.0) == 2
    assert figures(recipe, 1.0, "2=", 1.0) == 3
    assert figures(recipe, 1.0, "1=", 0.5) == 4
    assert figures(Recipe(shared=tmp_path, transcripts=0, tool_timeout_s=1.0), 1.0, "1=", 1.0) == 5
    assert figures(Recipe(transcripts=0), 1.0, "1=", 1.0) == 6  # nothing is shared
    assert figures(recipe, 1.0, "1=", 1.0) == 1
