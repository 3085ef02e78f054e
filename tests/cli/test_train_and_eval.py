"""The commands as a user types them, on small runs of the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from ctpo.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from launcher import finish, launch

SMALL = (
    "rollout_batches=2 generation_batch_size=32 num_generations=4 per_device_train_batch_size=8 "
    "eval_problems=16 eval_every=1 train_problems=64 save_steps=4"
).split()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small run's directory and what was printed; `started` beside it is of the moment the command was given."""
    path = tmp_path_factory.mktemp("cli") / "run"
    command = [sys.executable, "-m", "ctpo.cli.main", "train", *SMALL, f"output_dir={path}"]
    path.with_name("started").touch()
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return path, ran.stdout


def test_output_tells_the_story_in_plain_lines(run: tuple[Path, str]) -> None:
    path, printed = run
    assert "\x1b" not in printed
    lines = printed.splitlines()
    heading = next(i for i, line in enumerate(lines) if "held-out" in line and "clip %" in line)
    assert [line.split()[0] for line in lines[heading + 1 : heading + 4]] == ["0", "1", "2"]
    assert "pass@1 ± standard error" in printed
    assert f"ctpo eval {path}" in printed


def test_run_directory(run: tuple[Path, str]) -> None:
    path, _ = run
    files = "config.yaml environment.json metrics.jsonl summary.json curve.png model transcripts checkpoint-8"
    assert set(files.split()) <= {entry.name for entry in path.iterdir()}
    assert (path / "curve.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((path / "summary.json").read_text())
    for moment in ("before", "after"):
        assert {"pass@1", "stderr", "problems"} <= set(summary[moment])


def test_the_reported_time_counts_imports_and_the_first_evaluation(run: tuple[Path, str]) -> None:
    path, printed = run
    summary = path / "summary.json"
    took = summary.stat().st_mtime - path.with_name("started").stat().st_mtime
    reported = json.loads(summary.read_text())["wall_clock_s"]
    assert 0.8 * took < reported < took  # the rest is the start of the interpreter
    minutes, seconds = divmod(round(reported), 60)
    assert f"{minutes}:{seconds:02} in all" in printed


def test_show_prints_a_recipe_that_is_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--show", "objective=grpo", "learning_rate=1e-4"]) == 0
    printed = capsys.readouterr().out
    recipe = yaml.safe_load(printed)
    assert recipe["objective"] == "grpo"
    assert recipe["learning_rate"] == 1e-4
    assert recipe["objective_kwargs"]["ratio_high"] == 0.28
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["train", "--show", str(tmp_path / "again.yaml")]) == 0
    assert capsys.readouterr().out == printed


def test_eval_of_a_run_repeats_its_last_figure(
    run: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path, _ = run
    assert main(["eval", str(path), "--output", str(tmp_path / "eval")]) == 0
    after = json.loads((path / "summary.json").read_text())["after"]
    figures = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert figures["results"]["arithmetic"]["pass@1"] == after["pass@1"]
    assert f"{100 * after['pass@1']:.1f} ±" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "eval" / "transcripts.jsonl").read_text().splitlines()]
    assert sum(row["correct"] for row in rows) / len(rows) == after["pass@1"]


def test_eval_of_the_shipped_model_before_training(tmp_path: Path) -> None:
    """It starts near 20 %: the embedded run has something to learn (1,024 problems measured .183 ± .012)."""
    assert main(["eval", "embedded", "--limit", "400", "--show", "0", "--output", str(tmp_path)]) == 0
    accuracy = json.loads((tmp_path / "eval.json").read_text())["results"]["arithmetic"]["pass@1"]
    assert 0.11 < accuracy < 0.27  # four standard errors of .02 about .19


def test_ctrl_c_saves_and_resume_goes_on(tmp_path: Path) -> None:
    path, log = tmp_path / "run", tmp_path / "log"
    process = launch(["train", *SMALL, "eval_problems=4", "rollout_batches=40", f"output_dir={path}"], log)
    deadline = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() or (path / "metrics.jsonl").read_text().count("\n") < 2:
        assert process.is_alive(), log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, 60) == 130, log.read_text()
    assert f"ctpo train --resume {path}" in log.read_text()
    assert "Traceback" not in log.read_text()
    done = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["batch"]
    words = ["train", "--resume", str(path), f"rollout_batches={done + 1}"]
    with ThreadPoolExecutor() as threads:  # outside of the main thread, as Ray Train and notebooks do
        assert threads.submit(main, words).result() == 0
    assert json.loads((path / "summary.json").read_text())["rollout_batches"] == done + 1


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert "rollout_batches" in shown


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    """`ctpo train | head`: the records are files, not lines on a screen."""
    path = tmp_path / "run"
    command = [sys.executable, "-m", "ctpo.cli.main", "train", *SMALL, f"output_dir={path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=120) == 0
        assert process.stderr.read() == ""
    assert (path / "summary.json").is_file()


def test_show_of_a_run_shows_the_runs_recipe(
    run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = run
    assert main(["train", "--resume", str(path), "--show", "rollout_batches=9"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["rollout_batches"], shown["generation_batch_size"]) == (9, 32)


def test_task_check_renders_with_the_tokenizer_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "check", "arithmetic", "--model", "embedded", "--problems", "4"]) == 0
    shown = capsys.readouterr().out
    (row,) = (line for line in shown.splitlines() if line.startswith("train "))
    assert row.split("  ")[-1].strip() == "17 · 17 · 18"  # a token per character, as in the column before
    assert "all is well" in shown
