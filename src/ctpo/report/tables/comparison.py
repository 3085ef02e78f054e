"""The tables of a comparison: means over seeds, paired tests, and the runs one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ctpo.errors import UserError
from ctpo.report.collection import Collection, Group, run_score
from ctpo.report.tables.headline import heldout
from ctpo.report.tables.words import duration, mean_and_error, percent, probability, settings_in_words
from ctpo.runs.means import Mean, mean
from ctpo.runs.paired import Paired, holm, paired
from ctpo.runs.reader import Record, number

SCORES = ("final", "auc")


def headings(collection: Collection) -> dict[str, str]:
    """The heading of each score."""
    return {"final": f"final {collection.score_name}", "auc": "AUC"}


_WHAT_SCORES_ARE = (
    "AUC is the mean training reward over the rollout batches. A run has collapsed if it ends below half of its own "
    "best held-out accuracy."
)
_ONE_SEED = (
    " Every group has one seed only, so there are no statistics. Differences between these rows may be noise."
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it is shown."""

    id: str
    section: str
    title: str
    text: str
    """What the table holds, in one or two sentences."""
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[int | None] = ()
    """The index of the group of runs that each row belongs to, for its colour."""


def comparison_tables(collection: Collection) -> list[Table]:
    """Return the tables that have a row; none for a single run."""
    if len(collection.runs) < 2 and not collection.results:
        return []
    for regime in collection.regimes:
        _note_other_problems(collection, regime)
    means = _means_of_results(collection) or _means(collection)
    tables = [means, _tests(collection), _runs(collection)]
    return [_without_single_regime(table) for table in tables if table.rows]


def _without_single_regime(table: Table) -> Table:
    """Return the table without its first column if every row has the same regime there."""
    if len({row[0] for row in table.rows}) > 1:
        return table
    return replace(table, head=table.head[1:], rows=[row[1:] for row in table.rows])


def _means_of_results(collection: Collection) -> Table | None:
    """Return the means in a comparison's `results.json`, which may cover more runs than have their files here."""
    objectives = collection.results.get("objectives")
    if not isinstance(objectives, list):
        return None
    places = {(group.regime, group.name): place for place, group in enumerate(collection.groups)}
    rows, groups = [], []
    for each in objectives:
        if isinstance(each, dict):
            scores = [_mean_of_results(each.get(name)) for name in SCORES]
            row = [str(each.get("regime")), str(each.get("arm")), settings_in_words(each.get("setting"))]
            rows.append([*row, str(each.get("n")), *scores, f"{each.get('collapsed')}/{each.get('n')}"])
            groups.append(places.get((row[0], row[1])))
    return Table(
        id="means", section="comparison", title="Means over seeds",
        text="Mean ± standard error over the test seeds of the comparison. " + _WHAT_SCORES_ARE,
        head=["regime", "objective", "setting", "seeds", *headings(collection).values(), "collapsed"],
        rows=rows, groups=groups,
    )  # fmt: skip


def _mean_of_results(entry: object) -> str:
    value = number(entry.get("mean")) if isinstance(entry, dict) else None
    if value is None or not isinstance(entry, dict):
        return "no finished run"
    return mean_and_error(Mean(value=value, stderr=number(entry.get("stderr")), n=0))


def _means(collection: Collection) -> Table:
    rows = []
    for group in collection.groups:
        scores = list(group.scores.values())
        row = [group.regime, group.name, str(len(scores))]
        row += [_mean_over([score.named(name) for score in scores]) for name in SCORES]
        row += [
            f"{sum(score.collapsed for score in scores)}/{len(scores)}",
            duration(mean([score.seconds for score in scores]).value) if scores else "–",
        ]
        rows.append(row)
    one_seed = all(len(group.scores) < 2 for group in collection.groups)
    head = ["regime", "objective", "seeds", *headings(collection).values(), "collapsed", "time per run"]
    return Table(
        id="means", section="comparison", title="Means over seeds",
        text="Mean ± standard error over finished runs that differ only in the seed. " + _WHAT_SCORES_ARE
        + (_ONE_SEED if one_seed else ""),
        head=head, rows=rows, groups=list(range(len(rows))),
    )  # fmt: skip


def _mean_over(values: Sequence[float]) -> str:
    return mean_and_error(mean(values)) if values else "no finished run"


def _tests(collection: Collection) -> Table:
    """Return the tests in a comparison's results; if there are none, tests of each group against the first."""
    tests = collection.results.get("tests")
    if isinstance(tests, list):
        names = headings(collection)
        rows = [row for each in tests if isinstance(each, dict) and (row := _test_of_results(each, names))]
        how = "These tests were named before the test seeds ran. Secondary tests are not corrected."
    else:
        rows = _computed_tests(collection)
        how = (
            "Each row tests a group against the first of its regime. The tests were not named before the runs, so "
            "read small p-values as hints."
        )
    return Table(
        id="tests", section="comparison", title="Paired differences",
        text="Difference over the seeds that both groups have. Runs with the same seed see the same problems in the "
        "same order, so pairing them removes that noise. p is from a two-sided t-test; Holm's correction counts the "
        "tests of this table. " + how,
        head=["regime", "score", "difference", "mean ± s.e.", "seeds", "p", "p (Holm)"], rows=rows,
    )  # fmt: skip


def _test_of_results(test: Record, names: Mapping[str, str]) -> list[str] | None:
    difference, n = number(test.get("difference")), number(test.get("n"))
    if difference is None or n is None:
        return None
    average = Mean(value=difference, stderr=number(test.get("stderr")), n=int(n))
    return [
        str(test.get("regime", "")), names.get(str(test.get("score")), str(test.get("score"))),
        f"{test.get('one')} − {test.get('other')}", mean_and_error(average, "+"), str(average.n),
        probability(number(test.get("p"))),
        "secondary" if test.get("primary") is False else probability(number(test.get("p_holm"))),
    ]  # fmt: skip


def _computed_tests(collection: Collection) -> list[list[str]]:
    tested: list[tuple[str, str, str, Paired]] = []
    for regime in collection.regimes:
        first, *others = [group for group in collection.groups if group.regime == regime]
        for name in SCORES:
            for other in others:
                test = _pair(first, other, name, collection.notes)
                if test is not None:
                    tested.append((regime, name, f"{first.name} − {other.name}", test))
    corrected = holm([test.p for *_, test in tested])
    return [
        [
            regime,
            headings(collection)[name],
            pair,
            mean_and_error(test.difference, "+"),
            str(test.difference.n),
            probability(test.p),
            probability(p),
        ]
        for (regime, name, pair, test), p in zip(tested, corrected, strict=True)
    ]


def _note_other_problems(collection: Collection, regime: str) -> None:
    """Note it if the runs of a regime ended on different numbers of held-out problems, as their recipes may say."""
    runs = [run for group in collection.groups if group.regime == regime for run in group.runs if run.summary]
    counts = {after.problems for run in runs if (after := heldout(run)[1]) is not None and after.problems}
    if len(counts) > 1:
        numbers = " and ".join(f"{count:,.0f}" for count in sorted(counts))
        collection.notes.append(
            f"The final {collection.score_name} of runs in {regime} is over {numbers} held-out problems, so "
            "differences between them are not over the same problems."
        )


def _pair(one: Group, other: Group, name: str, notes: list[str]) -> Paired | None:
    """Return the test over the seeds that both groups have; None if they share none."""
    mine, theirs = one.scores, other.scores
    seeds = sorted(set(mine) & set(theirs))
    if not seeds:
        return None
    values = [mine[seed].named(name) for seed in seeds], [theirs[seed].named(name) for seed in seeds]
    try:
        return paired(*values)
    except UserError as error:  # scipy is not installed; the difference can be shown without a test
        if str(error) not in notes:
            notes.append(str(error))
        return Paired(difference=mean([a - b for a, b in zip(*values, strict=True)]), t=None, p=None)


def _runs(collection: Collection) -> Table:
    rows, places = [], []
    for place, group in enumerate(collection.groups):
        for run in group.runs:
            before, after = heldout(run)
            score = run_score(run)
            rows.append(
                [
                    group.regime, group.name, "–" if run.seed is None else str(run.seed),
                    "–" if before is None else percent(before.value), "–" if after is None else percent(after.value),
                    "–" if score is None else f"{score.auc:.3f}",
                    "not finished" if not run.summary else "collapsed" if score and score.collapsed else "finished",
                ]
            )  # fmt: skip
            places.append(place)
    score_name = collection.score_name
    head = ["regime", "objective", "seed", f"{score_name} before", f"{score_name} after", "AUC", "state"]
    return Table(
        id="runs", section="comparison", title="The runs one by one",
        text="Every run on this page.", head=head, rows=rows, groups=places,
    )  # fmt: skip
