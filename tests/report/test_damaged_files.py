"""Damaged, truncated and missing files: what can be read is shown, and the rest is noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctpo.report.collection import collect
from ctpo.report.page import figures, notes, page
from ctpo.runs.profiles import read_profiles
from ctpo.runs.reader import read_run
from tests.report.made import BATCHES, EDGES, profile, write_lines, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_whole_run_has_nothing_to_note(run: Path) -> None:
    collection = collect([run])
    page(collection, figures(collection), "t")
    assert notes(collection) == []


def test_a_last_line_cut_short_is_left_out(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    damaged = read_run(run)
    assert [record["batch"] for record in damaged.records] == list(range(BATCHES))
    assert damaged.notes == ["metrics.jsonl is cut short: its last line is left out"]


def test_a_damaged_line_in_the_middle_does_not_cost_the_others(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[2] = "[1, 2]"
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    damaged = read_run(run)
    assert [record["batch"] for record in damaged.records] == [0, 1, 3, 4]
    assert damaged.notes == ["metrics.jsonl: line 3 is damaged and left out"]


def test_values_that_are_no_numbers_are_noted_and_left_out_of_the_curves(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[2]["reward"], rows[3]["reward"] = float("nan"), None
    write_lines(run / "metrics.jsonl", rows)
    collection = collect([run])
    reward = next(figure for figure in figures(collection) if figure.id == "reward").series[0]
    assert list(reward.x) == [1, 4]
    assert "reward (2)" in collection.runs[0].notes[0]


@pytest.mark.parametrize(
    "name", ["config.yaml", "environment.json", "metrics.jsonl", "profile.jsonl", "summary.json"]
)
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "binary", "deep"])
def test_any_one_file_damaged_leaves_a_page_that_says_so(run: Path, name: str, damage: str) -> None:
    path = run / name
    whole = path.read_bytes()
    broken = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "binary": b"\xff\xfe\x00{",
        "deep": b"[" * 100_000,
    }
    path.unlink() if damage == "gone" else path.write_bytes(broken[damage])
    collection = collect([run])
    html = page(collection, figures(collection), "t")
    texts = [note.text for note in notes(collection)]
    if (name, damage) != ("config.yaml", "half"):  # half a YAML file may be a whole one
        assert any(name in text for text in texts), texts
    assert all(json.dumps(text)[1:-1].replace("<", "\\u003c") in html for text in texts if text.isascii())


def test_values_that_no_run_writes_do_not_end_the_report(run: Path) -> None:
    """These values once ended a report. Random damage to the files came upon them."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[1]["reward"], rows[2]["reward"], rows[3]["batch"], rows[4]["step"] = 10**400, 1e308, 10**400, True
    write_lines(run / "metrics.jsonl", rows)
    profiles = [profile(batch, 0) for batch in range(1, BATCHES + 1)]
    profiles[0]["log_ratio_std"][2], profiles[1]["count"][0] = -1.0, -5
    profiles[2]["edge"] = [-3, *EDGES[1:]]
    write_lines(run / "profile.jsonl", profiles)
    collection = collect([run])
    page(collection, figures(collection), "t")
    texts = [note.text for note in notes(collection)]
    assert "metrics.jsonl: 2 lines without batch and step are left out" in texts
    assert "profile.jsonl: 1 damaged profiles are left out" in texts


def test_what_a_recipe_switched_off_is_not_called_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", diagnostics=False, transcripts=0)
    for name in ("profile.jsonl", "samples/batch-0004.jsonl"):
        (run / name).unlink()
    (run / "transcripts" / "batch-0004.jsonl").write_text("")
    collection = collect([run])
    page(collection, figures(collection), "t")
    assert [note.text.split(" in its recipe")[0] for note in notes(collection)] == [
        "diagnostics: false",
        "transcripts: 0",
    ]


def test_profiles_that_are_not_whole_or_have_other_bins_are_left_out(run: Path) -> None:
    rows = [profile(batch, 0) for batch in range(1, BATCHES + 1)]
    del rows[0]["count"]
    rows[1]["high"] = rows[1]["high"][:-1]
    rows[2] = {**rows[2], **{key: value[:-1] for key, value in rows[2].items() if isinstance(value, list)}}
    write_lines(run / "profile.jsonl", rows)
    damaged = read_run(run)
    assert list(read_profiles(damaged)) == [4]
    assert damaged.notes == [
        "profile.jsonl: 2 damaged profiles are left out",
        "profile.jsonl: 1 profiles with other position bins are left out",
    ]


def test_runs_with_other_position_bins_are_left_out_of_the_curves_by_position(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"run-{seed}", seed=seed) for seed in range(3)]
    row = profile(1, 0)
    row["edge"] = [edge + 1 for edge in row["edge"]]
    write_lines(paths[2] / "profile.jsonl", [row])
    collection = collect(paths)
    figures(collection)
    assert ["other position bins" in " ".join(run.notes) for run in collection.runs] == [False, False, True]
