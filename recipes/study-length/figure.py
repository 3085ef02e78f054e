"""The figure of docs/evidence/study-length.md, from what the study's commands left.

    python recipes/study-length/figure.py collect STUDY FIDELITY    # write figure.json from the runs and the pairs
    python recipes/study-length/figure.py draw PICTURE              # draw figure.json and scores.csv
    python recipes/study-length/figure.py predict FIDELITY          # each pair's cosines against AUC: Spearman's ρ

STUDY is the directory of `ctpo compare … study.yaml`, FIDELITY that of fidelity.py.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fidelity import PLANS, arms, name_of  # the script beside this one
from scipy.stats import spearmanr

from ctpo.lab.comparison.compare import Choice, choose
from ctpo.lab.comparison.plan import Arm, read_plan
from ctpo.lab.comparison.runner import Budget, Runner
from ctpo.lab.comparison.scores_file import ScoresFile
from ctpo.runs.means import Mean, mean
from ctpo.runs.profiles import pooled, read_profiles
from ctpo.runs.reader import read_run

HERE = Path(__file__).parent
POSITIONS = ("ctpo", "grpo", "cispo", "prefix weight", "decay weight")  # arms drawn by position
OTHERS = ("fixed band", "ctpo by problem", "cispo by problem")
TEST_SEEDS = range(8)
TUNED = "14 problems"
LENGTHS = {"1 problem": 34, "7 problems": 230, "14 problems": 460, "28 problems": 900}  # tokens
LAGS = {"no lag": 0, "14 problems": 2, "lag 8": 8}


def collect(study: Path, pairs: Path) -> dict[str, Any]:
    """Everything by position, pooled over the test seeds at 14 problems, and every pair's figures."""
    by_position = {}
    for arm in POSITIONS:
        runs = [
            read_run(seed / "run")
            for seed in sorted(study.glob(f"runs/14 problems/{arm}/*/seed-*"))
            if int(seed.name.removeprefix("seed-")) in TEST_SEEDS
        ]
        profile = pooled([each for run in runs for each in read_profiles(run).values()])
        columns = profile.columns
        others = [n - gain for n, gain in zip(columns["count"], columns["gain_count"], strict=True)]
        by_position[arm] = {
            "runs": len(runs),
            "position": profile.positions,
            "tokens": columns["count"],
            "mean": columns["log_ratio_mean"],
            "spread": profile.spread,
            "ess": columns["gradient_ess"],
            "clipped, A > 0": _ratio(columns["gain_clipped"], columns["gain_count"]),
            "clipped, A ≤ 0": _ratio(columns["harm_clipped"], others),
        }
    return {"by position": by_position, "pairs": _shortened(measured(pairs))}


def measured(pairs: Path) -> list[dict[str, Any]]:
    """Cosine of a batch and pull of every arm and width, for every pair that fidelity.py has measured."""
    found = []
    for path in sorted(pairs.glob("pair-*/fidelity.json")):
        problems, updates = map(int, path.parent.name.split("-")[1:])
        result = json.loads(path.read_text())
        (pair,) = result["pairs"]
        found.append(
            {
                "problems": problems,
                "target": updates,
                "drift": pair["drift"]["log_ratio_std"],
                "tokens": pair["tokens"],
                "on-policy": {kind: rows["batch_cosine"] for kind, rows in result["on_policy"].items()},
                "arms": {
                    name: {
                        kind: {"cosine": rows["batch_cosine"], "pull": rows["pull"]}
                        for kind, rows in row["advantages"].items()
                    }
                    for name, row in zip(arms(), pair["objectives"], strict=True)
                },
            }
        )
    return found


def _shortened(value: Any) -> Any:
    """The same with estimates without their intervals, to four digits."""
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    if isinstance(value, Mapping):
        return {name: _shortened(each) for name, each in value.items() if name not in ("low", "high")}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def predict(pairs: Path) -> None:
    """Print how cosines rank with the AUC of training, for each pair: of the arms as tuned, and of all widths.

    The first has every arm in the width of its runs, with the mean AUC over its test seeds, and over those seeds that
    all arms have. The last, which was not planned, has every width at its better learning rate, with the AUC of the
    tuning seed at 14 problems.
    """
    known, common = scores(), scores(range(4))
    for pair in measured(pairs):
        regime = f"{pair['problems']} problem{'s' if pair['problems'] > 1 else ''}"
        cosines = {name: each["response"]["cosine"]["value"] for name, each in pair["arms"].items()}
        print(f"\n{regime}, 8 against {pair['target']} updates, {pair['drift']:.2f} nats")
        for what, aucs in (("arms as tuned", known), ("arms as tuned, common seeds", common)):
            found = [
                (cosines[name], aucs[regime, arm]["auc"].value, name)
                for arm, name in tuned(regime).items()
                if (regime, arm) in aucs
            ]
            _print_ranks(what, found)
        if regime == TUNED:
            _print_ranks("all widths", [(cosines[name], auc, name) for name, auc in tuning_aucs().items()])


def _print_ranks(what: str, rows: list[tuple[float | None, float, str]]) -> None:
    points = sorted([(cosine, auc, name) for cosine, auc, name in rows if cosine is not None], reverse=True)
    if len(points) > 2:
        found = spearmanr([cosine for cosine, _, _ in points], [auc for _, auc, _ in points])
        print(f"{what}: {len(points)}, Spearman's ρ {found.statistic:.2f}, p {found.pvalue:.2g}")
        for cosine, auc, name in points:
            print(f"  cosine {cosine:6.3f}  AUC {auc:.3f}  {name}")


def _ratio(parts: list[float | None], wholes: list[float | None]) -> list[float | None]:
    pairs = zip(parts, wholes, strict=True)
    return [part / whole if part is not None and whole else None for part, whole in pairs]


def scores(seeds: Iterable[int] = TEST_SEEDS) -> dict[tuple[str, str], dict[str, Mean]]:
    """AUC and final score over the test seeds, by regime and arm. Runs of the tuning seed are left out."""
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (HERE / "scores.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if int(row["seed"]) in seeds:
                for name in ("auc", "final"):
                    values[row["regime"], row["objective"]][name].append(float(row[name]))
    return {key: {name: mean(each) for name, each in kinds.items()} for key, kinds in values.items()}


def draw(kept: Mapping[str, Any], path: Path) -> None:
    """Draw six panels: what the weights do by position, and what that does to gradients and to learning."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8), layout="constrained", dpi=110)
    axes = figure.subplots(2, 3)
    colours = {arm: f"C{place}" for place, arm in enumerate((*POSITIONS, *OTHERS))}
    _by_position(axes[0], kept["by position"], colours)
    _cosines(axes[1][0], kept["pairs"], colours)
    known = scores()
    for axis, regimes, name, label in (
        (axes[1][1], LENGTHS, "auc", "response, tokens"),
        (axes[1][2], LAGS, "final", "lag, rollout batches"),
    ):
        for arm, colour in colours.items():
            points = [
                (x, known[regime, arm][name]) for regime, x in regimes.items() if (regime, arm) in known
            ]
            if len(points) > 1:
                xs, means = zip(*points, strict=True)
                errors = [each.stderr or 0.0 for each in means]
                axis.errorbar(
                    xs, [each.value for each in means], errors, color=colour, marker="o", ms=4, label=arm
                )
        axis.set(xlabel=label, xticks=list(regimes.values()))
        axis.set_title(
            f"{'AUC' if name == 'auc' else 'final score'} over the test seeds ± standard error; not from 0",
            loc="left",
            fontsize=9,
        )
    axes[1][1].set_xscale("log")
    axes[1][1].set_xticks(list(LENGTHS.values()), list(map(str, LENGTHS.values())))
    axes[1][1].minorticks_off()
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    for axis in axes[0][:2]:
        axis.legend(frameon=False, fontsize=7)
    handles = axes[1][1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]), frameon=False, fontsize=8)
    figure.savefig(path)


def _by_position(axes: Any, kept: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    """Spread and mean of ctpo's ratio; clipped shares by sign; effective share of the weights."""
    own = kept["ctpo"]
    for name, style in (("spread", "-"), ("mean", ":")):
        values = [None if each is None else abs(each) for each in own[name]]
        axes[0].plot(
            *_known(own["position"], values),
            style,
            color="C0",
            label=f"{name} within an update" if name == "spread" else "|mean|",
        )
    xs, spread = _known(own["position"], own["spread"])
    axes[0].plot(xs, [spread[-1] * math.sqrt(x / xs[-1]) for x in xs], "--", color="0.6", label="√t")
    axes[0].set(xscale="log", yscale="log", xlabel="position, tokens")
    axes[0].set_title("ctpo: log ratio of the prefix, nats", loc="left", fontsize=9)
    for arm in ("ctpo", "grpo"):
        for key, style in (("clipped, A > 0", "-"), ("clipped, A ≤ 0", ":")):
            axes[1].plot(
                *_known(kept[arm]["position"], kept[arm][key]),
                style,
                color=colours[arm],
                label=f"{arm}, {key}",
            )
    axes[1].set(xscale="log", xlabel="position, tokens", ylim=(0, None))
    axes[1].set_title("share of tokens clipped, by the advantage's sign", loc="left", fontsize=9)
    for arm in kept:
        axes[2].plot(*_known(kept[arm]["position"], kept[arm]["ess"]), color=colours[arm], label=arm)
    axes[2].set(xscale="log", xlabel="position, tokens", ylim=(0, 1))
    axes[2].set_title("effective share of the weights after clipping", loc="left", fontsize=9)


def _known(xs: list[float | None], ys: list[float | None]) -> tuple[list[float], list[float]]:
    """The points that have both coordinates."""
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    return [x for x, _ in points], [y for _, y in points]


def _cosines(axis: Any, pairs: list[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """The cosine of one batch with the on-policy gradient, over the length, 16 updates apart, in the tuned width."""
    chosen = tuned()
    lengths = sorted({pair["tokens"] for pair in pairs if pair["target"] == 24})
    for arm, colour in colours.items():
        points = [
            (pair["tokens"], pair["arms"][chosen[arm]]["response"]["cosine"])
            for pair in pairs
            if pair["target"] == 24 and arm in chosen
        ]
        points = sorted((x, each["value"], each["stderr"]) for x, each in points if each["value"] is not None)
        if points:
            xs, ys, errors = zip(*points, strict=True)
            axis.errorbar(xs, ys, errors, color=colour, marker="o", ms=4, label=arm)
    axis.axhline(0, color="0.6", lw=0.7)
    axis.set(xscale="log", xlabel="response, tokens")
    axis.set_xticks(lengths, [f"{length:.0f}" for length in lengths])
    axis.minorticks_off()
    axis.set_title(
        "cosine of 64 responses with the on-policy gradient ± standard error", loc="left", fontsize=9
    )


def tuned(regime: str = TUNED) -> dict[str, str]:
    """The name of every arm in the width of its runs, as `arms` gives it. Arms that are not tuned yet lack."""
    return {
        arm.name: name_of(arm, choice.setting)
        for arm, choice in _choices(regime)
        if None not in choice.scores
    }


def tuning_aucs() -> dict[str, float]:
    """The AUC of every arm and width in the tuning seed at 14 problems, with the better of its learning rates."""
    best: dict[str, float] = {}
    for arm, choice in _choices(TUNED):
        for setting, auc in zip(arm.grid, choice.scores, strict=True):
            if auc is not None:
                name = name_of(arm, setting)
                best[name] = max(auc, best.get(name, 0.0))
    return best


def _choices(regime: str) -> Iterator[tuple[Arm, Choice]]:
    """What the runs of a regime were set to, of the arms with one advantage for the whole response."""
    for file in PLANS:
        plan = read_plan(HERE / file)
        runner = Runner(HERE / "unused", Budget(cores=1, memory_mb=1), ScoresFile(HERE / "scores.csv"))
        for choice in choose(plan, runner):
            arm = plan.arm(choice.arm)
            if choice.regime == regime and arm.keys.get("advantages") != "each-turn":
                yield arm, choice


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["collect", study, pairs]:
            (HERE / "figure.json").write_text(json.dumps(collect(Path(study), Path(pairs))) + "\n")
        case ["draw", picture]:
            draw(json.loads((HERE / "figure.json").read_text()), Path(picture))
        case ["predict", pairs]:
            predict(Path(pairs))
        case _:
            raise SystemExit(__doc__)
