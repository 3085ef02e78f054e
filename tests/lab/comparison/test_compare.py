"""A small comparison with real processes: they are run, resumed, scored and tested."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ctpo.cli.main import main
from ctpo.errors import UserError
from ctpo.lab.comparison.compare import choose, final_cells, results, tuning_cells
from ctpo.lab.comparison.plan import Plan, read_plan
from ctpo.lab.comparison.runner import Budget, Runner
from ctpo.runs.scores import read_score

SMALL = {
    "rollout_batches": 1, "generation_batch_size": 16, "per_device_train_batch_size": 8, "num_generations": 4,
    "train_problems": 16, "eval_problems": 8, "max_completion_length": 24, "save_steps": 2,
}  # fmt: skip


def write_plan(path: Path, **changes: Any) -> Path:
    content = {"common": SMALL, "objectives": {"ctpo": {}, "grpo": {}}, "seeds": {"test": [0]}, **changes}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def write_run(runner: Runner, which: Any, *, final: float, rewards: list[float], best: float = 0.0) -> None:
    """Write the files of a finished run with these figures."""
    folder = runner.directory(which)
    folder.mkdir(parents=True)
    (folder.parent / "recipe.yaml").write_text(yaml.safe_dump(dict(which.keys)), encoding="utf-8")
    records: list[Mapping[str, Any]] = [{"batch": 0, "step": 0, "heldout_pass@1": best}]
    records += [{"batch": i, "step": i, "reward": reward} for i, reward in enumerate(rewards, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    summary = {"after": {"pass@1": final}, "wall_clock_s": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Plan, Runner]:
    tune = {"learning_rate": [1e-4, 3e-4]}
    plan = read_plan(write_plan(tmp_path / "c.yaml", tune=tune, seeds={"tune": [9, 8], "test": [0, 1, 2]}))
    return plan, Runner(tmp_path / "c", Budget(cores=1, memory_mb=1000))


def test_the_setting_with_the_best_mean_over_tuning_seeds_is_tested(planned: tuple[Plan, Runner]) -> None:
    plan, runner = planned
    for which in tuning_cells(plan):
        better = which.setting["learning_rate"] == (3e-4 if which.arm == "ctpo" else 1e-4)
        # seed 9 alone would choose the other setting
        reward = (0.5 if which.seed == 9 else 0.9) if better else (0.6 if which.seed == 9 else 0.2)
        write_run(runner, which, final=0.1, rewards=[reward])
    chosen = {choice.arm: choice for choice in choose(plan, runner)}
    assert chosen["ctpo"].setting == {"learning_rate": 3e-4}
    assert chosen["grpo"].setting == {"learning_rate": 1e-4}
    assert chosen["ctpo"].scores == pytest.approx((0.4, 0.7))


def test_results_pair_the_seeds_that_both_have(planned: tuple[Plan, Runner]) -> None:
    plan, runner = planned
    choices = choose(plan, runner)
    finals = {("ctpo", 0): 0.9, ("ctpo", 1): 0.8, ("grpo", 0): 0.7, ("grpo", 1): 0.7, ("grpo", 2): 0.1}
    for which in final_cells(plan, choices):
        if (which.arm, which.seed) in finals:
            write_run(runner, which, final=finals[which.arm, which.seed], rewards=[0.2, 0.4], best=0.5)
    outcome = results(plan, runner, choices, [])
    rows = {row["arm"]: row for row in outcome["objectives"]}
    assert (rows["ctpo"]["n"], rows["grpo"]["n"]) == (2, 3)
    assert rows["ctpo"]["auc"]["mean"] == pytest.approx(0.3)
    assert (rows["ctpo"]["collapsed"], rows["grpo"]["collapsed"]) == (0, 1)  # .1 is below half of .5
    final = next(test for test in outcome["tests"] if test["score"] == "final")
    assert (final["n"], final["difference"]) == (2, pytest.approx(0.15))
    assert final["p_holm"] == final["p"]  # the areas do not differ, so only one test counts


def test_a_comparison_runs_resumes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, output = write_plan(tmp_path / "c.yaml"), tmp_path / "out"
    command = ["compare", str(path), "--output", str(output), "--cores", "2"]
    assert main([*command, "--json"]) == 0
    outcome = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert [row["n"] for row in outcome["objectives"]] == [1, 1]
    assert outcome["failures"] == []
    runs = sorted(output.glob("runs/*/*/*/seed-0/run"))
    assert [run.parents[2].name for run in runs] == ["ctpo", "grpo"]
    before = [run.joinpath("summary.json").stat().st_mtime_ns for run in runs]
    assert main(command) == 0  # nothing is left to do
    assert [run.joinpath("summary.json").stat().st_mtime_ns for run in runs] == before
    assert "one seed" in capsys.readouterr().out
    changed = write_plan(tmp_path / "c.yaml", regimes={"all": {"learning_rate": 1e-5}})
    assert main(["compare", str(changed), "--output", str(output)]) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err


def test_a_regime_like_another_takes_its_settings_but_for_what_it_sets(tmp_path: Path) -> None:
    tune = {"learning_rate": [1e-4, 3e-4], "objective_kwargs.norm_length": [0.1, 0.3]}
    regimes = {"tuned": {}, "high": {"like": "tuned", "learning_rate": 1e-3}}
    plan = read_plan(
        write_plan(tmp_path / "c.yaml", tune=tune, regimes=regimes, seeds={"tune": [9], "test": [0]})
    )
    runner = Runner(tmp_path / "c", Budget(cores=1, memory_mb=1000))
    cells = tuning_cells(plan)
    assert {which.regime for which in cells} == {"tuned"}
    assert plan.runs == len(cells) + len(plan.arms) * 2
    for which in cells:
        best = which.setting == {"learning_rate": 1e-4, "objective_kwargs": {"norm_length": 0.3}}
        write_run(runner, which, final=0.1, rewards=[0.9 if best else 0.2])
    tested = [which for which in final_cells(plan, choose(plan, runner)) if which.arm == "ctpo"]
    chosen = {
        which.regime: (which.keys["learning_rate"], which.keys["objective_kwargs"]["norm_length"])
        for which in tested
    }
    assert chosen == {"tuned": (1e-4, 0.3), "high": (1e-3, 0.3)}


def test_runs_of_primary_comparisons_come_first(tmp_path: Path) -> None:
    arms: dict[str, Any] = {"ctpo": {}, "grpo": {}, "gspo": {}}
    path = write_plan(
        tmp_path / "c.yaml", objectives=arms, seeds={"test": [0, 1]}, compare=[["gspo", "ctpo"]]
    )
    plan = read_plan(path)
    cells = final_cells(plan, choose(plan, Runner(tmp_path / "c", Budget(cores=1, memory_mb=1000))))
    order = [(which.arm, which.seed) for which in cells]
    assert order == [("ctpo", 0), ("gspo", 0), ("ctpo", 1), ("gspo", 1), ("grpo", 0), ("grpo", 1)]


def test_only_what_was_named_as_primary_is_corrected(planned: tuple[Plan, Runner], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"pair": ["ctpo", "grpo"], "scores": ["final"]}
    seeds = {"tune": [9, 8], "test": [0, 1, 2]}
    path = write_plan(tmp_path / "c.yaml", seeds=seeds, compare=[asked], secondary=[["ctpo", "grpo"]])
    plan, runner = read_plan(path), planned[1]
    choices = choose(plan, runner)
    for which in final_cells(plan, choices):
        value = 0.1 * which.seed + (0.3 if which.arm == "ctpo" else 0.2 - 0.01 * which.seed)
        write_run(runner, which, final=value, rewards=[value])
    tests = results(plan, runner, choices, [])["tests"]
    assert [(test["primary"], test["score"]) for test in tests] == [
        (True, "final"), (False, "auc"), (False, "final"),
    ]  # fmt: skip
    assert tests[0]["p_holm"] == tests[0]["p"] == tests[2]["p"]  # one test alone counts
    assert tests[1]["p_holm"] is tests[2]["p_holm"] is None


CLOCKED = {"seconds", "batch_s", "generation_s", "tool_s", "training_s", "tokens_per_s"}


def bits(run: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """Return a run's weights and records, without figures of time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    plain = [{name: value for name, value in row.items() if name not in CLOCKED} for row in rows]
    return (run / "model" / "model.safetensors").read_bytes(), plain


def test_a_forked_run_is_the_run_of_the_command_line(tmp_path: Path) -> None:
    """They are equal bit for bit, even if the run takes tool answers and its first evaluation from an earlier run."""
    keys = {**SMALL, "transcripts": 0, "max_completion_length": 80}
    arms = {"ctpo": {}, "same": {"objective": "ctpo", "engine": "local"}}
    tune = {"learning_rate": [1e-3]}  # a setting, so that its name is part of the recipe's path
    plan = read_plan(write_plan(tmp_path / "c.yaml", common=keys, objectives=arms, tune=tune))
    runner = Runner(tmp_path / "c", Budget(cores=1, memory_mb=1000))
    cells = final_cells(plan, choose(plan, runner))
    assert runner.run(cells) == []
    first, second = (runner.directory(which) for which in cells)
    recipe, alone = first.parent / "recipe.yaml", tmp_path / "alone"
    ended = subprocess.run(
        [sys.executable, "-m", "ctpo", "train", str(recipe), f"output_dir={alone}"],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert bits(first) == bits(second) == bits(alone)
    costs = [json.loads((run.parent / "cost.json").read_text()) for run in (first, second)]
    assert 0 < costs[1]["cpu_s"] < costs[0]["cpu_s"]  # the second ran no program and evaluated only once


def test_a_terminated_comparison_leaves_no_run_behind_and_continues_later(tmp_path: Path) -> None:
    common = {**SMALL, "rollout_batches": 40, "save_steps": 1000}
    path, output = write_plan(tmp_path / "c.yaml", common=common, objectives={"ctpo": {}}), tmp_path / "c"
    command = [sys.executable, "-m", "ctpo", "compare", str(path), "--output", str(output), "--cores", "1"]
    run = output / "runs" / "all" / "ctpo" / "untuned" / "seed-0" / "run"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    records = run / "metrics.jsonl"
    while not (records.is_file() and records.read_text().count("\n") > 1):  # training is under way
        assert process.poll() is None
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert process.stderr.read().endswith("ctpo: interrupted\n")
    (checkpoint,) = run.glob("checkpoint-*")
    assert not psutil.wait_procs(started, 5)[1]
    assert "ctpo train --resume" in (run.parent / "log.txt").read_text()
    assert int(checkpoint.name.split("-")[1]) < 80  # of 80 updates, two per rollout batch


def test_runs_in_the_file_of_scores_are_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, scores = write_plan(tmp_path / "c.yaml", objectives={"ctpo": {}}), tmp_path / "scores.csv"
    command = ["compare", str(path), "--scores", str(scores), "--json", "--output"]
    with ThreadPoolExecutor() as threads:  # outside of the main thread, as a notebook does
        assert threads.submit(main, [*command, str(tmp_path / "here")]).result() == 0
    here = json.loads(capsys.readouterr().out)
    assert main([*command, str(tmp_path / "elsewhere")]) == 0  # another directory, as on another machine
    assert json.loads(capsys.readouterr().out) == here
    assert not (tmp_path / "elsewhere").exists()
    (row,) = csv.DictReader(scores.read_text().splitlines())
    run = read_score(tmp_path / "here" / "runs" / "all" / "ctpo" / "untuned" / "seed-0" / "run")
    assert run is not None
    assert (float(row["final"]), float(row["auc"])) == pytest.approx((run.final, run.auc), abs=1e-6)
    assert float(row["cpu_s"]) > 0
    written = scores.read_text()
    scores.unlink()  # as if it had been stopped before it wrote them
    assert main([*command, str(tmp_path / "here")]) == 0
    assert scores.read_text() == written
    assert json.loads(capsys.readouterr().out) == here
    lines = scores.read_text().splitlines()
    assert (lines[0].rpartition(",")[2], row["graded"]) == ("graded", "False")
    scores.write_text(
        "".join(line.rpartition(",")[0] + "\n" for line in lines)
    )  # as earlier versions wrote it
    assert main([*command, str(tmp_path / "elsewhere")]) == 0
    assert json.loads(capsys.readouterr().out) == here
    write_plan(tmp_path / "c.yaml", objectives={"ctpo": {"learning_rate": 1e-5}})
    assert main([*command, str(tmp_path / "elsewhere")]) == 2
    assert f"{scores} holds all/ctpo/untuned/seed-0 of another recipe" in capsys.readouterr().err
    scores.write_text(scores.read_text().replace("ctpo,untuned,0,", "ctpo,untuned,0,x"))
    assert main([*command, str(tmp_path / "elsewhere")]) == 2
    assert f"{scores} is damaged" in capsys.readouterr().err


def test_a_failed_run_is_reported_and_the_others_continue(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path / "c.yaml", objectives={"ctpo": {"model": "./absent"}}))
    runner = Runner(tmp_path / "c", Budget(cores=1, memory_mb=1000))
    failures = runner.run(final_cells(plan, choose(plan, runner)))
    assert "model=./absent does not exist" in failures[0].reason
    assert results(plan, runner, choose(plan, runner), failures)["objectives"][0]["final"] is None


@pytest.mark.parametrize(
    ("arm", "line"),
    [
        ({"objective": "gpro"}, "gpro"),
        ({"engine": "trl"}, "engine='trl' is unknown; use local or verl"),
        ({"engine": "verl", "oversampling": 2.0}, "oversampling=2.0 cannot run with engine=verl: verl draws"),
        ({"engine": "verl", "per_device_train_batch_size": 2}, "verl's updates hold whole groups"),
        ({"engine.trainer.nnodes": 2}, "engine.trainer.nnodes=2 has no effect with engine=local"),
        ({"engine": "verl", "ray_address": "there:6379"}, "which sends the run, with its code and data"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arm: dict[str, Any], line: str
) -> None:
    path = write_plan(tmp_path / "c.yaml", objectives={"ctpo": {}, "bad": {"objective": "ctpo", **arm}})
    assert main(["compare", str(path)]) == 2
    refused = capsys.readouterr().err
    assert line in refused
    assert refused.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"after"', encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        read_score(tmp_path)
