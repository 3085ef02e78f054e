"""Which runs belong to one group, and which runs of a comparison are shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ctpo.errors import UserError
from ctpo.report.collection import collect
from ctpo.report.page import figures, page
from ctpo.report.tables.comparison import comparison_tables
from ctpo.report.tables.headline import cards
from ctpo.runs.paired import paired
from tests.report.made import ENVIRONMENT, write_comparison, write_run


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    for seed in (1, 0):
        write_run(tmp_path / f"a{seed}", seed=seed)
        write_run(tmp_path / f"b{seed}", seed=seed, learning_rate=1e-4)
        write_run(tmp_path / f"c{seed}", seed=seed, objective="grpo", objective_kwargs={"high": 0.3})
    groups = collect([tmp_path]).groups
    assert [group.name for group in groups] == [
        "ctpo, learning_rate 0.0003",
        "ctpo, learning_rate 0.0001",
        "grpo",
    ]
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 1]] * 3


def test_differences_are_paired_by_seed_and_tested(tmp_path: Path) -> None:
    finals = {"ctpo": {0: 0.9, 1: 0.85, 2: 0.8}, "grpo": {1: 0.7, 2: 0.72, 3: 0.1}}
    for objective, by_seed in finals.items():
        for seed, final in by_seed.items():
            write_run(tmp_path / f"{objective}{seed}", objective=objective, seed=seed, final=final)
    tables = {table.id: table for table in comparison_tables(collect([tmp_path]))}
    expected = paired([0.85, 0.8], [0.7, 0.72])
    row = next(row for row in tables["tests"].rows if row[0] == "final pass@1")
    assert row[1:4] == [
        "ctpo − grpo",
        f"{expected.difference.value:+.3f} ± {expected.difference.stderr:.3f}",
        "2",
    ]
    assert row[4] == f"{expected.p:.3f}"
    assert "The tests were not named before the runs" in tables["tests"].text


def test_gains_and_comparisons_say_over_which_problems(tmp_path: Path) -> None:
    """An evaluation before the last one may have drawn fewer problems, and a run may have other ones."""
    for objective, problems in (("ctpo", 1_000), ("grpo", 256)):
        path = write_run(tmp_path / objective, objective=objective)
        summary = json.loads((path / "summary.json").read_text())
        summary["after"] |= {"problems": problems, "gain": 0.58}
        (path / "summary.json").write_text(json.dumps(summary))
    gain = next(card for card in cards(collect([tmp_path / "ctpo"])) if card.label == "gain")
    assert gain.value == "+58.0"
    assert "over 100 problems, the same ones after" in gain.detail
    both = collect([tmp_path])
    comparison_tables(both)
    assert any("over 256 and 1,000 held-out problems" in note for note in both.notes)


def test_one_seed_each_has_no_statistics_and_says_so(tmp_path: Path) -> None:
    for objective in ("ctpo", "grpo"):
        write_run(tmp_path / objective, objective=objective)
    tables = {table.id: table for table in comparison_tables(collect([tmp_path]))}
    assert "there are no statistics" in tables["means"].text
    assert tables["means"].rows[0][2] == "0.800 (one seed)"
    assert [row[-1] for row in tables["tests"].rows] == ["–", "–"]


def test_a_comparison_shows_the_test_runs_of_the_chosen_settings_and_its_own_tests(tmp_path: Path) -> None:
    collection = collect([write_comparison(tmp_path / "study")])
    assert [(group.regime, group.name, len(group.runs)) for group in collection.groups] == [
        ("16 updates", "ctpo", 3), ("16 updates", "grpo", 3), ("64 updates", "ctpo", 3), ("64 updates", "grpo", 3),
    ]  # fmt: skip
    assert collection.notes == [
        "8 runs are left out: they tuned the settings, or ran with settings that were not chosen"
    ]
    tests = next(table for table in comparison_tables(collection) if table.id == "tests")
    assert tests.rows[1] == [
        "64 updates",
        "final pass@1",
        "ctpo − grpo",
        "+0.200 ± 0.010",
        "3",
        "0.003",
        "0.005",
    ]
    assert "named before" in tests.text


def test_a_comparison_whose_runs_are_elsewhere_shows_its_tables(tmp_path: Path) -> None:
    study = write_comparison(tmp_path / "study")
    for folder in study.glob("runs/64 updates/*/*/*"):
        shutil.rmtree(folder)
    collection = collect([study])
    assert (
        "results.json scores 12 runs, but the files of only 6 are here; the curves show those"
        in collection.notes
    )
    shutil.rmtree(study / "runs" / "16 updates")
    collection = collect([study])
    assert page(collection, figures(collection), "t").count("no finished run") == 0
    means = next(table for table in comparison_tables(collection) if table.id == "means")
    assert means.rows[2] == [
        "64 updates", "ctpo", "learning_rate 0.0003", "3", "0.810 ± 0.006", "0.500 ± 0.010", "0/3",
    ]  # fmt: skip


def test_a_comparison_under_way_is_shown_without_its_results(tmp_path: Path) -> None:
    study = write_comparison(tmp_path / "study")
    (study / "results.json").unlink()
    collection = collect([study])
    assert len(collection.runs) == 20
    assert "results.json is left out (it is missing" in collection.notes[0]


def test_mixed_versions_are_noted(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"{seed}", seed=seed) for seed in range(3)]
    other = {**ENVIRONMENT, "packages": {"torch": "2.12"}}
    (paths[1] / "environment.json").write_text(json.dumps(other))
    assert collect(paths).notes == ["the runs had different versions of torch: 2.13 (2 runs), 2.12 (1 run)"]


def test_a_directory_without_a_run_is_noted_beside_one_with_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    collection = collect([run, tmp_path / "nowhere"])
    assert len(collection.runs) == 1
    assert collection.notes == [f"{tmp_path / 'nowhere'} holds no run: it does not exist"]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(b"\xff")
    for path in (tmp_path / "nowhere", tmp_path / "run"):
        with pytest.raises(UserError, match="nothing to report"):
            collect([path])
