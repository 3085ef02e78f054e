"""Online calibration: each rollout batch is trained with the band fitted to the one before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_instruments import Processes, profile_of, walk
from test_run import InterruptAt

from ctpo import CTPOConfig
from ctpo.objectives import calibrate, preset
from ctpo.objectives.calibration import Tails
from ctpo.runs.directory import read_records
from ctpo.runs.profiles import read_checked_profiles
from ctpo.training.diagnostics.online import OnlineBand
from ctpo.training.diagnostics.proposal import calibration_columns
from ctpo.training.diagnostics.record import as_profile
from ctpo.training.run.train import Outcome, train

Recipe = Callable[..., dict[str, Any]]
SHARE = 0.2


@pytest.fixture(scope="module")
def keys(small_recipe: Recipe) -> Callable[[Path], dict[str, Any]]:
    def keys(output: Path) -> dict[str, Any]:
        calibrated = {"objective": "ctpo-calibrated", "objective_kwargs": {"share": SHARE, "scale": 0.5}}
        return small_recipe(output, rollout_batches=3, eval_every=0, calibrate_online=True, **calibrated)

    return keys


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, keys: Callable[[Path], dict[str, Any]]) -> Outcome:
    return train(keys(tmp_path_factory.mktemp("online") / "run"))


def test_each_band_is_the_fit_of_the_batch_before(whole: Outcome) -> None:
    """That band clips the share of that batch's tokens, counted from its profile. The records hold its knobs."""
    lines, records = read_records(whole.run.profile), whole.run.records()[1:]
    profiles = list(read_checked_profiles(whole.run).values())
    assert [records[0][f"band_{name}"] for name in ("scale", "power", "centre")] == [0.5, 0.5, 0.0]
    for each, record, following in zip(profiles, records[1:], lines[1:], strict=False):
        profile = calibration_columns(each)
        fit, tails = calibrate(profile, SHARE), Tails.of(profile)
        assert tails is not None
        for name in ("scale", "power", "centre"):
            assert record[f"band_{name}"] == pytest.approx(fit.knobs[name], rel=1e-3, abs=1e-6), name
        below, above = tails.clipped(fit.low, fit.high, fit.power)
        assert float((below + above).sum() / profile["count"].sum()) == pytest.approx(SHARE, abs=1e-3)
        for t, limit in zip(following["position_mean"], following["band"]["high"], strict=True):
            assert limit == (None if t is None else pytest.approx(fit.high * t**fit.power, rel=1e-2))


def test_interrupted_and_resumed_it_takes_the_same_bands(
    whole: Outcome, keys: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    stopped = train(keys(tmp_path / "run"), listener=InterruptAt(2, 2))
    assert not stopped.finished
    resumed = train({}, resume=tmp_path / "run").run
    assert resumed.profile.read_text() == whole.run.profile.read_text()
    bands = [{k: v for k, v in r.items() if k.startswith("band_")} for r in resumed.records()]
    assert bands == [{k: v for k, v in r.items() if k.startswith("band_")} for r in whole.run.records()]
    weights = "model.safetensors"
    assert (resumed.model / weights).read_bytes() == (whole.run.model / weights).read_bytes()


def test_samples_are_the_last_update_token_by_token(whole: Outcome) -> None:
    """Clip states follow from log ratio, position, advantage and the band; log weights are sums of log ratios."""
    rows = [json.loads(line) for line in whole.run.samples(3).read_text().split("\n") if line]
    assert 0 < len(rows) <= 4
    record = whole.run.records()[-1]
    objective = preset(
        "ctpo-calibrated", share=SHARE, **{n: record[f"band_{n}"] for n in ("scale", "power", "centre")}
    )
    band = objective.trust_region.bases  # type: ignore[attr-defined]
    assert band.dual is not None
    states = set()
    for row in rows:
        assert {len(row[key]) for key in ("model", "log_ratio", "log_weight", "clip", "position")} == {
            len(row["tokens"])
        }
        assert row["prompt"].endswith("=")
        assert "<py>" in "".join(row["tokens"])
        assert row["reward"] in (0.0, 1.0)
        assert (row["advantage"] > 0) == (row["reward"] == 1.0)
        t, total = 0, 0.0
        for i, model in enumerate(row["model"]):
            if not model:
                assert (row["log_ratio"][i], row["log_weight"][i], row["clip"][i]) == (None, None, 0)
                continue
            t, total = t + 1, total + row["log_ratio"][i]
            assert row["position"][i] == t
            assert row["log_weight"][i] == pytest.approx(total, abs=1e-4)
            c, up = row["log_weight"][i], row["advantage"] > 0
            limits = [bound * t**band.power for bound in (band.lower, band.upper, band.dual)]
            if min(abs(c - limit) for limit in limits) > 2e-6:  # rounded to six digits
                above, below, dual = up and c > limits[1], not up and c < limits[0], not up and c > limits[2]
                assert row["clip"][i] == (1 if above else -1 if below else 2 if dual else 0)
            states.add(row["clip"][i])
    assert len(states) > 1


def test_only_where_it_has_an_effect(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"use_cpu": True, "calibrate_online": True}
    with pytest.raises(ValueError, match=r"no effect on objective='ctpo'; use objective='ctpo-calibrated'"):
        CTPOConfig(str(tmp_path), **settings)
    with pytest.raises(ValueError, match=r"needs the profile that diagnostics measure; use diagnostics=True"):
        CTPOConfig(str(tmp_path), objective="ctpo-calibrated", diagnostics=False, **settings)


def test_switched_off_it_leaves_no_trace_and_trains_the_same(
    whole: Outcome, small_recipe: Recipe, tmp_path: Path
) -> None:
    settings = {"rollout_batches": 1, "eval_every": 0, "eval_problems": 4, "save_strategy": "no"}
    quiet = train(small_recipe(tmp_path / "quiet", diagnostics=False, **settings)).run
    assert not quiet.profile.exists()
    assert not quiet.samples(1).parent.exists()
    watched = train(small_recipe(tmp_path / "watched", **settings)).run
    weights = "model.safetensors"
    assert (quiet.model / weights).read_bytes() == (watched.model / weights).read_bytes()
    added = watched.records()[1].keys() - quiet.records()[1].keys()
    assert {name.split("_")[0] for name in added} == {"engine", "gradient", "spread"}


def test_where_the_knob_is_not_0_the_centre_follows_the_mean() -> None:
    """Walks of 0.1 nats per token have the mean −0.005 per token."""
    sums = profile_of([(1, walk(1, 0.1, 256))], Processes())
    settings = {"share": SHARE, "scale": 0.5, "power": 0.5, "centre": 0.0}
    made: list[dict[str, float]] = []

    def build(**knobs: float) -> Any:
        made.append(knobs)
        return preset("ctpo-calibrated", share=SHARE, **knobs)

    still, moving = (
        OnlineBand({**settings, "log_drift": 0.0}, build),
        OnlineBand({**settings, "log_drift": 1e-4}, build),
    )
    for band in (still, moving):
        band.update(sums)
    assert "log_drift" not in made[0]
    fitted = calibrate(as_profile(sums), SHARE, drift=True).knobs
    assert {**made[1], "share": SHARE} == pytest.approx({"centre": 0.0, **fitted, "share": SHARE}, rel=1e-9)
    assert moving.figures()["band_log_drift"] == pytest.approx(0.005, rel=0.2)
    restored = OnlineBand({**settings, "log_drift": 1e-4}, build)
    restored.load_state_dict(moving.state_dict())
    assert restored.figures() == moving.figures()
