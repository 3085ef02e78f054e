"""What the file of a comparison means, and which mistakes are refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ctpo.engines.choice import split_engine
from ctpo.errors import UserError
from ctpo.lab.comparison.compare import tuning_cells
from ctpo.lab.comparison.plan import cell, read_plan
from ctpo.lab.comparison.scores_file import ScoresFile

TOLD: dict[str, Any] = {
    "common": {"rollout_batches": 2},
    "objectives": {
        "ctpo": {"tune": {"objective_kwargs.log_high": [0.05, 0.4]}},
        "wide": {"objective": "grpo", "tune": {"objective_kwargs.ratio_high": [0.2, 0.6]}},
    },
    "regimes": {"one": {}, "four": {"num_iterations": 4}},
    "tune": {"learning_rate": [1e-4, 3e-4]},
    "seeds": {"tune": [100], "test": [0, 1]},
}


def plan_of(folder: Path, **changes: Any) -> Any:
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump({**TOLD, **changes}), encoding="utf-8")
    return read_plan(path)


@pytest.mark.parametrize(("plan", "scores"), [("study", "scores"), ("finalists", "finalists")])
def test_recorded_studies_are_still_read(plan: str, scores: str) -> None:
    """They were recorded when `log_low` and `ratio_low` were both `low`; every score is found under its digest."""
    folder = Path(__file__).parents[3] / "recipes" / "study"
    recorded = ScoresFile(folder / f"{scores}.csv")
    cells = tuning_cells(read_plan(folder / f"{plan}.yaml"))
    assert len(cells) > 5
    assert all(recorded.score(each) is not None for each in cells)


def test_a_cell_holds_its_complete_recipe(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert plan.runs == 2 * 2 * (4 * 1 + 2)
    arm = plan.arm("wide")
    assert len(arm.grid) == 4
    keys = cell(plan, "four", arm, arm.grid[3], 7).keys
    assert (keys["objective"], keys["num_iterations"], keys["seed"]) == ("grpo", 4, 7)
    assert keys["learning_rate"] == 3e-4
    assert keys["objective_kwargs"] == {"ratio_high": 0.6}
    assert keys["rollout_batches"] == 2
    assert keys["task"] == "arithmetic"  # the embedded recipe below it all


def test_keys_of_an_engine_stay_whole(tmp_path: Path) -> None:
    common = {"engine": "verl", "engine.trainer.nnodes": 1, "rollout_batches": 2}
    plan = plan_of(tmp_path, common=common, tune={"engine.critic.optim.lr": [1e-5, 1e-4]})
    arm = plan.arm("wide")
    keys = cell(plan, "one", arm, arm.grid[2], 0).keys
    choice, rest = split_engine(keys)
    assert choice.overrides == {"trainer.nnodes": 1, "critic.optim.lr": 1e-4}
    assert not any(name.startswith("engine") for name in rest)


def test_settings_have_directories_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    folders = {
        cell(plan, regime, arm, setting, seed).folder
        for regime in plan.regimes
        for arm in plan.arms
        for setting in arm.grid
        for seed in (0, 1)
    }
    assert len(folders) == 2 * 2 * 4 * 2


def test_an_objective_without_a_name_of_its_own_is_its_preset(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    assert plan.arm("ctpo").keys["objective"] == "ctpo"
    assert [(each.one, each.other, each.regime, each.score) for each in plan.questions] == [
        ("ctpo", "wide", regime, score) for regime in ("four", "one") for score in ("auc", "final")
    ]
    assert plan.secondary == ()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"seeds": {"tune": [0], "test": [0, 1]}}, "seed 0 is used for tuning and for the test"),
        ({"seeds": {"test": [0, 1]}}, "seeds.tune is empty"),
        ({"seeds": {"tune": [3], "test": []}}, "seeds.test is empty"),
        ({"seeds": {"tune": [3], "test": [1, 1]}}, "names a seed twice"),
        ({"seeds": None}, "seeds is missing"),
        ({"objectives": {"ctpo": {"tune": {"beta": [1, 2]}}, "grpo": {}}}, r"ctpo 4, grpo 2"),
        ({"objectives": {}}, "objectives is empty"),
        ({"objectives": ["ctpo"]}, "is not a mapping"),
        ({"tune": {"learning_rate": 1e-4}}, "is not a list of values"),
        ({"compare": [["ctpo", "dapo"]]}, "'dapo', which is not one of ctpo, wide"),
        ({"compare": [["ctpo"]]}, "write pairs"),
        ({"secondary": [{"pair": ["ctpo", "wide"], "regime": "one"}]}, "secondary holds 'regime'"),
        ({"compare": [{"pair": ["ctpo", "wide"], "regimes": ["two"]}]}, "compare.regimes names 'two'"),
        ({"regimes": {"one": {}, "high": {"like": "two"}}}, "regimes.high.like names 'two'"),
        ({"select_by": "luck"}, "'luck', which is not one of auc, final"),
        ({"objectivs": {}}, "unknown key 'objectivs'"),
        ({"recipe": "absent.yaml"}, "does not exist"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        plan_of(tmp_path, **changes)
