"""A whole comparison: tune every objective alike, run the test seeds, and test what was named beforehand."""

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
    """What the tuning of one objective in one regime found."""

    regime: str
    arm: str
    setting: Mapping[str, Any]
    scores: tuple[float | None, ...]
    """Mean of `Plan.select_by` over the tuning seeds, for each setting of the grid; None where all runs failed."""


def tuning_cells(plan: Plan) -> list[Cell]:
    """The runs that choose the settings; seeds outermost, so that an early stop leaves whole rounds."""
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
    """The best setting of each objective in each regime, by the mean over the tuning seeds."""
    return [
        _choice(plan, runner, regime, arm)
        if regime not in plan.like
        else _borrowed(plan, runner, regime, arm)
        for regime in plan.regimes
        for arm in plan.arms
    ]


def _borrowed(plan: Plan, runner: Runner, regime: str, arm: Arm) -> Choice:
    """What was chosen in the regime that this one is like, but for what this one itself sets."""
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
    """The runs the objectives are compared on: those of the primary comparisons first, so that a stop leaves these
    the most whole; seeds outermost in both parts."""
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
    """Everything found, as plain values: choices, means, paired tests with their correction, what is missing."""
    chosen = {(each.regime, each.arm): each for each in choices}
    scores = {
        key: {
            seed: score
            for seed in plan.test_seeds
            if (score := runner.score(cell(plan, key[0], plan.arm(key[1]), each.setting, seed)))
        }
        for key, each in chosen.items()
    }
    rows = [_row(chosen[key], found) for key, found in scores.items()]
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
        {**vars(asked), "primary": primary, "p_holm": None, **_told(test)}
        for asked in questions
        if (test := _paired(scores[asked.regime, asked.one], scores[asked.regime, asked.other], asked.score))
    ]


def _row(choice: Choice, found: Mapping[int, Score]) -> dict[str, Any]:
    row: dict[str, Any] = {"regime": choice.regime, "arm": choice.arm, "setting": dict(choice.setting)}
    row["n"] = len(found)
    for name in SCORES:
        values = [score.named(name) for score in found.values()]
        told = mean(values) if values else None
        row[name] = {"mean": told.value, "stderr": told.stderr} if told else None
    row["collapsed"] = sum(score.collapsed for score in found.values())
    row["by_seed"] = {str(s): {name: score.named(name) for name in SCORES} for s, score in found.items()}
    return row


def _paired(one: Mapping[int, Score], other: Mapping[int, Score], name: str) -> Paired | None:
    """The test over the seeds that both have; None when they share none."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    return paired([one[seed].named(name) for seed in seeds], [other[seed].named(name) for seed in seeds])


def _told(test: Paired) -> dict[str, Any]:
    difference = test.difference
    return {
        "difference": difference.value, "stderr": difference.stderr, "n": difference.n, "t": test.t, "p": test.p
    }  # fmt: skip
