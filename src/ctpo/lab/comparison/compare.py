"""The procedure of a comparison: tune all objectives alike, run the test seeds, make the tests named beforehand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ctpo.lab.comparison.plan import SCORES, Arm, Cell, Plan, Question, cell
from ctpo.lab.comparison.runner import Failure, Runner
from ctpo.runs.means import mean
from ctpo.runs.paired import Paired, holm, paired
from ctpo.runs.scores import Score


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The setting that the tuning of one objective in one regime chose."""

    regime: str
    arm: str
    setting: Mapping[str, Any]
    scores: tuple[float | None, ...]
    """The mean of `Plan.select_by` over the tuning seeds, for each setting of the grid; None if all its runs failed."""


def tuning_cells(plan: Plan) -> list[Cell]:
    """Return the runs that choose the settings. Seeds come outermost, so that an early stop leaves complete rounds."""
    if not plan.tuned:
        return []
    return [
        cell(plan, regime, arm, setting, seed)
        for seed in plan.tuning_seeds
        for regime in plan.regimes
        if regime not in plan.like
        for arm in plan.arms
        for setting in arm.grid
    ]


def choose(plan: Plan, runner: Runner) -> list[Choice]:
    """Return the best setting of each objective in each regime, by the mean score over the tuning seeds."""
    return [
        _choice(plan, runner, regime, arm)
        if regime not in plan.like
        else _borrowed(plan, runner, regime, arm)
        for regime in plan.regimes
        for arm in plan.arms
    ]


def _borrowed(plan: Plan, runner: Runner, regime: str, arm: Arm) -> Choice:
    """Return the setting chosen in the regime that this one is like, without the keys that this one sets itself."""
    chosen = _choice(plan, runner, plan.like[regime], arm).setting
    setting = {key: value for key, value in chosen.items() if key not in plan.regimes[regime]}
    return Choice(regime=regime, arm=arm.name, setting=setting, scores=())


def _choice(plan: Plan, runner: Runner, regime: str, arm: Arm) -> Choice:
    means: list[float | None] = []
    for setting in arm.grid:
        cells = [cell(plan, regime, arm, setting, seed) for seed in plan.tuning_seeds] if plan.tuned else []
        scores = [score.named(plan.select_by) for each in cells if (score := runner.score(each))]
        means.append(mean(scores).value if scores else None)
    best = max(range(len(means)), key=lambda i: -1.0 if means[i] is None else float(means[i] or 0.0))
    return Choice(regime=regime, arm=arm.name, setting=arm.grid[best], scores=tuple(means))


def final_cells(plan: Plan, choices: Iterable[Choice]) -> list[Cell]:
    """Return the runs on which the objectives are compared.

    Those of the primary tests come first, so that an early stop leaves them the most complete. In both parts, seeds
    come outermost.
    """
    named = {(asked.regime, arm) for asked in plan.questions for arm in (asked.one, asked.other)}
    chosen = list(choices)
    cells = [
        cell(plan, each.regime, plan.arm(each.arm), each.setting, seed)
        for seed in plan.test_seeds
        for each in chosen
    ]
    return sorted(cells, key=lambda which: (which.regime, which.arm) not in named)


def results(
    plan: Plan, runner: Runner, choices: Iterable[Choice], failures: Iterable[Failure]
) -> dict[str, Any]:
    """Return all results as plain values: choices, means, paired tests with their correction, and failed runs."""
    chosen = {(each.regime, each.arm): each for each in choices}
    scores = {
        key: {
            seed: score
            for seed in plan.test_seeds
            if (score := runner.score(cell(plan, key[0], plan.arm(key[1]), each.setting, seed)))
        }
        for key, each in chosen.items()
    }
    rows = [_row(chosen[key], by_seed) for key, by_seed in scores.items()]
    tests = _tests(plan.questions, scores, primary=True) + _tests(plan.secondary, scores, primary=False)
    primary = [test for test in tests if test["primary"]]
    for test, corrected in zip(primary, holm([test["p"] for test in primary]), strict=True):
        test["p_holm"] = corrected
    return {
        "objectives": rows,
        "tests": tests,
        "tuning": {
            "settings_each": len(plan.arms[0].grid),
            "seeds": list(plan.tuning_seeds) if plan.tuned else [],
            "select_by": plan.select_by,
            "choices": [
                {"regime": e.regime, "arm": e.arm, "setting": dict(e.setting), "scores": list(e.scores)}
                for e in chosen.values()
            ],
        },
        "test_seeds": list(plan.test_seeds),
        "failures": [{"run": str(each.cell.folder), "reason": each.reason} for each in failures],
    }


def _tests(
    questions: Iterable[Question], scores: Mapping[tuple[str, str], Mapping[int, Score]], *, primary: bool
) -> list[dict[str, Any]]:
    return [
        {**vars(asked), "primary": primary, "p_holm": None, **_as_entries(test)}
        for asked in questions
        if (test := _paired(scores[asked.regime, asked.one], scores[asked.regime, asked.other], asked.score))
    ]


def _row(choice: Choice, scores: Mapping[int, Score]) -> dict[str, Any]:
    row: dict[str, Any] = {"regime": choice.regime, "arm": choice.arm, "setting": dict(choice.setting)}
    row["n"] = len(scores)
    for name in SCORES:
        values = [score.named(name) for score in scores.values()]
        average = mean(values) if values else None
        row[name] = {"mean": average.value, "stderr": average.stderr} if average else None
    row["collapsed"] = sum(score.collapsed for score in scores.values())
    if any(score.graded for score in scores.values()):
        row["graded"] = True
    row["by_seed"] = {str(s): {name: score.named(name) for name in SCORES} for s, score in scores.items()}
    return row


def _paired(one: Mapping[int, Score], other: Mapping[int, Score], name: str) -> Paired | None:
    """Return the test over the seeds that both have; None if they share none."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    return paired([one[seed].named(name) for seed in seeds], [other[seed].named(name) for seed in seeds])


def _as_entries(test: Paired) -> dict[str, Any]:
    difference = test.difference
    return {
        "difference": difference.value, "stderr": difference.stderr, "n": difference.n, "t": test.t, "p": test.p
    }  # fmt: skip
