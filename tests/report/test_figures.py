"""The prepared curves against independent sums over the tokens and seeds behind them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from ctpo.report.collection import collect
from ctpo.report.drawing import _set_axis, draw
from ctpo.report.figures.figure import Axis, Figure, over_seeds, thinned
from ctpo.report.page import figures
from ctpo.runs.means import mean
from tests.report.made import BATCHES, EDGES, tokens, write_run


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    run = write_run(tmp_path_factory.mktemp("one") / "run")
    return {figure.id: figure for figure in figures(collect([run]))}


def of_bin(place: int) -> np.ndarray:
    """(position, log ratio) of all batches' tokens in a bin."""
    low, high = [0, *EDGES][place], EDGES[place]
    rows = [row for batch in range(1, BATCHES + 1) for row in tokens(batch, 0) if low < row[0] <= high]
    return np.array(rows)


def test_all_batches_together_are_the_union_of_their_tokens(one: dict[str, Figure]) -> None:
    spread = next(s for s in one["spread-by-position"].series if s.frame == 0 and s.role == "line")
    assert spread.y == pytest.approx([of_bin(i)[:, 1].std() for i in range(len(EDGES))], rel=1e-9)
    assert spread.x == pytest.approx([of_bin(i)[:, 0].mean() for i in range(len(EDGES))])
    clip = one["clip-by-position"]
    assert clip.parts[0] == "all"
    curve = next(s for s in clip.series if s.frame == 0 and s.part == 0)
    assert curve.token_counts == [len(of_bin(i)) for i in range(len(EDGES))]
    for place, share in enumerate(curve.y):
        t, value = of_bin(place).T
        assert share == pytest.approx(np.mean((value > 0.05 * np.sqrt(t)) | (value < -0.025 * np.sqrt(t))))


def test_a_frame_is_one_batch(one: dict[str, Figure]) -> None:
    figure = one["spread-by-position"]
    assert figure.frames == ["all batches", "batch 1", "batch 2", "batch 3", "batch 4"]
    curve = next(s for s in figure.series if s.frame == 3 and s.role == "line")
    assert curve.y[0] == pytest.approx(np.std([value for position, value in tokens(3, 0) if position == 1]))


def test_what_a_critic_explains_is_shown_by_position(one: dict[str, Figure]) -> None:
    pooled, last = (
        next(s for s in one["critic-by-position"].series if s.frame == frame) for frame in (0, BATCHES)
    )
    assert pooled.y[0] == pytest.approx(sum(range(1, BATCHES + 1)) / BATCHES / 10)
    assert last.y[:3] == [pytest.approx(BATCHES / 10), None, 0.5]
    assert "critic-loss-by-position" not in one  # the profiles have none


def test_the_root_line_has_the_slope_one_half_and_the_weighted_mean_height(one: dict[str, Figure]) -> None:
    spread, line = (
        next(s for s in one["spread-by-position"].series if s.frame == 0 and s.role == role)
        for role in ("line", "reference")
    )
    t, std, root = (np.array(values, dtype=float) for values in (spread.x, spread.y, line.y))
    assert np.allclose(root / np.sqrt(t), root[0] / math.sqrt(t[0]))
    counts = np.array([len(of_bin(i)) for i in range(len(EDGES))])
    assert np.average(np.log(std / root), weights=counts) == pytest.approx(0, abs=1e-12)


def test_the_histogram_holds_every_token_and_the_limits_end_at_the_first_and_last_bin(
    one: dict[str, Figure],
) -> None:
    series = [s for s in one["ratio-histogram"].series if s.frame == 0]
    assert sum(value or 0 for value in series[0].y[::2]) == pytest.approx(1)
    upper = sorted(s.x[0] or 0 for s in series if s.part == 1)
    assert upper == pytest.approx([0.05, 0.05 * math.sqrt(of_bin(4)[:, 0].mean())])


def test_one_run_has_the_band_of_its_held_out_problems(one: dict[str, Figure]) -> None:
    curve = one["heldout-pass-at-1"].series[0]
    assert curve.y == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8])
    assert curve.low == pytest.approx([value - 0.01 for value in curve.y])


def test_several_runs_have_the_mean_and_standard_error_over_seeds(tmp_path: Path) -> None:
    finals = (0.6, 0.7, 0.95)
    paths = [write_run(tmp_path / f"{seed}", seed=seed, final=final) for seed, final in enumerate(finals)]
    by_id = {figure.id: figure for figure in figures(collect(paths))}
    curve = by_id["heldout-pass-at-1"].series[0]
    expected = mean(finals)
    assert curve.y[-1] == pytest.approx(expected.value)
    assert curve.high is not None
    assert curve.high[-1] == pytest.approx(expected.value + (expected.stderr or 0))
    assert [s.name for s in by_id["heldout-pass-at-1"].series if s.role == "seed"] == [
        "seed 0",
        "seed 1",
        "seed 2",
    ]


def test_the_pairs_behind_the_tests_are_shown(tmp_path: Path) -> None:
    finals = {("ctpo", 2): 0.9, ("ctpo", 0): 0.8, ("grpo", 0): 0.7}
    paths = [
        write_run(tmp_path / f"{objective}{seed}", objective=objective, seed=seed, final=final)
        for (objective, seed), final in finals.items()
    ]
    figure = next(figure for figure in figures(collect(paths)) if figure.id == "seeds-final")
    assert figure.x.names == ["0", "2"]
    assert [(s.role, s.x, s.y) for s in figure.series] == [("dots", [0, 1], [0.8, 0.9]), ("dots", [0], [0.7])]


def test_a_tick_of_a_logarithmic_axis_reads_as_its_value() -> None:
    axes = Picture().add_subplot()
    axes.set_ylim(2e-5, 2.0)
    _set_axis(axes, "y", Axis(label="nats", scale="log"))
    ticks = {text.get_position()[1]: text.get_text() for text in axes.get_yticklabels()}
    assert ticks[1e-4] == "0.0001"
    assert all(float(text) == pytest.approx(value) for value, text in ticks.items())


def test_pictures_show_zero_or_say_that_they_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the axes that matplotlib has drawn: a linear one holds 0, or its label says that it does not."""
    drawn: list[Axes] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: drawn.extend(figure.axes))
    paths = [write_run(tmp_path / f"{seed}", seed=seed, final=0.8) for seed in range(2)]
    draw(collection := collect(paths), figures(collection), tmp_path / "plots")
    cut = set()
    for axes in drawn:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            label = axis.get_label_text()
            if axis.get_scale() == "linear" and label != "seed":
                assert (low <= 0 <= high) != label.endswith("(this axis does not start at 0)"), label
                cut |= set() if low <= 0 <= high else {label.split(" (")[0]}
    assert cut == {"final held-out pass@1", "mean training reward"}
    assert not [
        line
        for axes in drawn
        if axes.get_xlabel() == "seed"
        for line in axes.lines
        if line.get_linestyle() != "None"
    ]


def test_a_seed_without_a_value_is_not_counted() -> None:
    band = over_seeds([[1.0, 2.0, None], [3.0, None, None]])
    assert band.mean == [2.0, 2.0, None]
    assert band.low == [1.0, None, None]


def test_long_curves_are_thinned_to_both_ends() -> None:
    assert thinned(3, 5) == [0, 1, 2]
    places = thinned(1001, 5)
    assert places == [0, 250, 500, 750, 1000]
