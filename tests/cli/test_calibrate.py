"""`ctpo calibrate` on a run's profile, and on what is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.cli.main import main
from ctpo.objectives import preset
from ctpo.runs.directory import RunDirectory
from ctpo.runs.profiles import pooled, read_checked_profiles
from ctpo.training.diagnostics.profile import PositionProfile, ProfileSums
from ctpo.training.diagnostics.proposal import calibration_columns
from ctpo.training.diagnostics.record import as_profile, profile_line

LONGEST, WIDTH = 64, 0.05


class OneProcess:
    device = torch.device("cpu")

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        return values


def batch(seed: int, rows: int = 1500) -> tuple[torch.Tensor, ...]:
    """Independent steps: the spread is WIDTH·√t."""
    g = torch.Generator().manual_seed(seed)
    d = WIDTH * torch.randn(rows, LONGEST, generator=g, dtype=torch.float64)
    logps = torch.full((rows, LONGEST), -2.0, dtype=torch.float64)
    advantages = torch.randn(rows, generator=g, dtype=torch.float64)
    return logps, logps - d, advantages, torch.ones(rows, LONGEST, dtype=torch.bool)


def sums_of(seed: int, **knobs: Any) -> ProfileSums:
    objective = preset("ctpo-calibrated", **knobs) if knobs else preset("ctpo")
    profile = PositionProfile(lambda: objective, LONGEST)
    profile.add(*batch(seed))
    sums = profile.close(OneProcess())
    assert sums is not None
    return sums


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return [
        {"batch": i + 1, "step": 4 * (i + 1), **profile_line(sums_of(i), preset("ctpo"))} for i in range(3)
    ]


def write(run: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    run.mkdir()
    (run / "config.yaml").write_text("objective: ctpo\nmax_completion_length: 200\n")
    (run / "profile.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return run


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["calibrate", *words]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_proposal_clips_the_share_at_every_position(
    lines: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As JSON, fed back into the objective, on drift that it has not seen: within a third of the share in every bin."""
    proposal = json.loads(printed(capsys, str(write(tmp_path / "run", lines)), "--json", "--share", "0.1"))
    assert proposal["objective"] == "ctpo-calibrated"
    assert proposal["spread"]["power"] == pytest.approx(0.5, abs=0.03)
    assert proposal["spread"]["scale"] == pytest.approx(WIDTH, rel=0.1)
    assert proposal["expected_clip_fraction"] == pytest.approx(0.1, abs=1e-3)
    line = profile_line(sums_of(9, **proposal["objective_kwargs"]), preset("ctpo"))
    clipped = [(h + low) / n for h, low, n in zip(line["high"], line["low"], line["count"], strict=True)]
    assert max(abs(share - 0.1) for share in clipped) < 0.033
    assert sum(line["high"] + line["low"]) / sum(line["count"]) == pytest.approx(0.1, abs=0.01)


def test_the_table_says_what_each_band_does(
    lines: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", lines)
    shown = printed(capsys, str(run), "--batches", "2")
    assert "rollout batches 2 to 3" in shown
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith("64 ") or "-64 " in line]
    (row,) = rows
    last = [sum(line[name][-1] for line in lines[1:]) for name in ("count", "high", "low")]
    assert row[1] == f"{last[0]:,}"
    assert float(row[4]) == pytest.approx(100 * (last[1] + last[2]) / last[0], abs=0.051)
    assert float(row[6]) == pytest.approx(10, abs=2)
    assert "no response had more than 64 tokens of the 200 allowed" in shown
    assert "the run's own band clipped" in shown
    words = next(line for line in shown.splitlines() if line.startswith("  ctpo train"))
    assert main(["train", "--show", *words.split()[2:]]) == 0  # ready to paste
    assert "objective: ctpo-calibrated" in capsys.readouterr().out


def test_a_fixed_exponent(
    lines: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proposal = json.loads(printed(capsys, str(write(tmp_path / "run", lines)), "--json", "--power", "1"))
    assert proposal["objective_kwargs"]["power"] == 1
    assert any("one power of t does not describe this drift" in warning for warning in proposal["warnings"])


def test_a_last_line_cut_short_is_left_out(
    lines: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "run", lines, tail=json.dumps(lines[0])[:200])
    assert "rollout batches 1 to 3" in printed(capsys, str(run))


def test_pooled_lines_are_one_profile(tmp_path: Path) -> None:
    """Of batches that drifted apart, and one that is shorter: as if their tokens had been one batch's."""
    profile = PositionProfile(lambda: preset("ctpo"), LONGEST)
    lines, total = [], None
    for seed, shift in enumerate((0.0, 0.02, -0.05)):
        logps, old, advantages, mask = batch(seed, rows=100)
        mask[:, 30 * seed :] &= seed < 2
        profile.add(logps, old - shift, advantages, mask)
        sums = profile.close(OneProcess())
        assert sums is not None
        lines.append({"batch": seed + 1, "step": seed + 1, **profile_line(sums, preset("ctpo"))})
        total = sums if total is None else total + sums
    assert total is not None
    profiles = read_checked_profiles(RunDirectory(write(tmp_path / "run", lines)))
    columns = calibration_columns(pooled(list(profiles.values())))
    for name, expected in as_profile(total).items():
        torch.testing.assert_close(columns[name], expected.double(), rtol=1e-5, atol=1e-6, msg=name)


def test_profiles_of_an_earlier_release_are_read_and_named(
    lines: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They hold one spread over all updates of a rollout batch; so does a run that was resumed with this release."""
    new = ("spread", "spread_count", "ess", "gradient_ess", "updates", "gain_count")
    old = [{key: value for key, value in line.items() if key not in new} for line in lines]
    for i, content in enumerate((old, [old[0], *lines[1:]])):
        shown = printed(capsys, str(write(tmp_path / str(i), content)))
        assert "an earlier release, which pooled the updates of a rollout batch" in shown
        last = next(line for line in shown.splitlines() if "-64 " in line).split()
        assert float(last[2]) == pytest.approx(pooled_std(content, -1), rel=0.01)
    assert "earlier release" not in printed(capsys, str(write(tmp_path / "new", lines)))


def pooled_std(lines: list[dict[str, Any]], place: int) -> float:
    rows = [[line[name][place] for name in ("count", "log_ratio_mean", "log_ratio_std")] for line in lines]
    n = sum(count for count, _, _ in rows)
    mean = sum(count * m for count, m, _ in rows) / n
    return math.sqrt(sum(count * (s * s + (m - mean) ** 2) for count, m, s in rows) / n)


def changed(lines: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return [lines[0], {**lines[1], **changes}, lines[2]]


def test_bad_input(lines: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bins = len(lines[0]["edge"])
    std, histogram = lines[1]["log_ratio_std"], lines[1]["log_ratio_histogram"]
    short = {key: value for key, value in lines[1].items() if key != "count"}
    one = {
        "count": [lines[0]["count"][0], *[0] * (bins - 1)],
        "log_ratio_std": [std[0], *[None] * (bins - 1)],
    }
    still = {"log_ratio_std": [0.0] * bins}
    cases: list[tuple[Any, list[str], str]] = [
        (lines, ["--share", "0.7"], "share: 0.7 must be < 0.5"),
        (lines, ["--share", "0"], "share: 0.0"),
        (lines, ["--batches", "0"], "--batches 0 is too small; use at least 1"),
        ([], [], "holds no whole line; let the run finish a rollout batch"),
        (changed(lines, log_ratio_std=[math.nan, *std[1:]]), [], "line 2 holds a figure that is not finite"),
        (changed(lines, high=[1]), [], f"line 2 is damaged (high does not fit {bins} bins)"),
        (changed(lines, log_ratio_histogram={**histogram, "gain": [[1]]}), [], "line 2 is damaged (gain"),
        (
            changed(lines, log_ratio_histogram={**histogram, "harm": histogram["harm"][1:]}),
            [],
            "line 2 is damaged (its bins or its histogram do not fit)",
        ),
        (changed(lines, edge=[*lines[0]["edge"][:-1], 65]), [], "line 2 has other bins than line 1"),
        ([lines[0], short], [], "line 2 lacks figures ('count')"),
        ([{**lines[0], **one}], [], "1 bins hold a spread; the fit needs 2"),
        ([{**lines[0], **still}], [], "0 bins hold a spread; the fit needs 2"),
    ]
    for i, (content, words, complaint) in enumerate(cases):
        run = write(tmp_path / str(i), content)
        assert main(["calibrate", str(run), *words]) == 2, complaint
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert complaint in captured.err
    damaged = write(tmp_path / "damaged", lines)
    (damaged / "profile.jsonl").write_text("{\n" + (damaged / "profile.jsonl").read_text())
    assert main(["calibrate", str(damaged)]) == 2
    assert "profile.jsonl line 1 is damaged" in capsys.readouterr().err
    assert main(["calibrate", str(tmp_path / "nowhere")]) == 2
    assert "is not a run (no such directory)" in capsys.readouterr().err
    (damaged / "profile.jsonl").unlink()
    assert main(["calibrate", str(damaged)]) == 2
    assert "has no profile.jsonl: it ran without diagnostics" in capsys.readouterr().err


def test_the_centre_may_follow_the_mean(
    lines: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The slope is that of the recorded means, and the proposal is the preset's with that knob."""
    run = write(tmp_path / "run", lines)
    shown = json.loads(printed(capsys, str(run), "--drift", "--json"))
    plain = json.loads(printed(capsys, str(run), "--json"))
    assert "log_drift" not in plain["objective_kwargs"]
    kwargs = shown["objective_kwargs"]
    assert abs(kwargs["log_drift"]) < 0.002  # the steps have the mean 0
    region = preset("ctpo-calibrated", **kwargs).trust_region
    assert (region.log_low, region.log_high) == pytest.approx(
        (shown["band"]["low"], shown["band"]["high"]), rel=1e-4
    )
    assert f"objective_kwargs.log_drift={kwargs['log_drift']:g}" in printed(capsys, str(run), "--drift")
