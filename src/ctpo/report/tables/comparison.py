"""Means over seeds, paired tests, and the runs one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ctpo.errors import UserError
from ctpo.report.collection import Collection, Group, run_score
from ctpo.report.tables.headline import heldout
from ctpo.report.tables.words import duration, mean_told, percent, probability, setting_words
from ctpo.runs.means import Mean, mean
from ctpo.runs.paired import Paired, holm, paired
from ctpo.runs.reader import Record, number


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it is shown."""

    id: str
    section: str
    title: str
    text: str
    """What the table holds, in a sentence or two."""
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[int | None] = ()
    """The index of the group of runs that each row belongs to, for its colour."""


SCORES = {"final": "final pass@1", "auc": "AUC"}
_WHAT_SCORES_ARE = (
    "AUC is the mean training reward over the rollout batches. A run has collapsed when it ends below half of its own "
    "best held-out accuracy."
)
_ONE_SEED = (
    " There is one seed each: differences between these rows may be noise, and there are no statistics."
)


def comparison_tables(collection: Collection) -> list[Table]:
    """Nothing for a single run."""
    if len(collection.runs) < 2 and not collection.results:
        return []
    means = _named_means(collection) or _means(collection)
    found = [means, _tests(collection), _each(collection)]
    return [_without_one_regime(table) for table in found if table.rows]


def _without_one_regime(table: Table) -> Table:
    """Without its first column where every row says the same regime there."""
    if len({row[0] for row in table.rows}) > 1:
        return table
    return replace(table, head=table.head[1:], rows=[row[1:] for row in table.rows])


def _named_means(collection: Collection) -> Table | None:
    """A comparison's own means, which may be of more runs than have their files here."""
    told = collection.results.get("objectives")
    if not isinstance(told, list):
        return None
    places = {(group.regime, group.name): place for place, group in enumerate(collection.groups)}
    rows, groups = [], []
    for each in told:
        if isinstance(each, dict):
            scores = [_named_mean(each.get(name)) for name in SCORES]
            row = [str(each.get("regime")), str(each.get("arm")), setting_words(each.get("setting"))]
            rows.append([*row, str(each.get("n")), *scores, f"{each.get('collapsed')}/{each.get('n')}"])
            groups.append(places.get((row[0], row[1])))
    return Table(
        id="means", section="comparison", title="Means over seeds",
        text="Mean ± standard error over the comparison's test seeds. " + _WHAT_SCORES_ARE,
        head=["regime", "objective", "setting", "seeds", *SCORES.values(), "collapsed"], rows=rows, groups=groups,
    )  # fmt: skip


def _named_mean(told: object) -> str:
    value = number(told.get("mean")) if isinstance(told, dict) else None
    if value is None or not isinstance(told, dict):
        return "no finished run"
    return mean_told(Mean(value=value, stderr=number(told.get("stderr")), n=0))


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
    head = ["regime", "objective", "seeds", *SCORES.values(), "collapsed", "time a run"]
    return Table(
        id="means", section="comparison", title="Means over seeds",
        text="Mean ± standard error over finished runs that differ in the seed alone. " + _WHAT_SCORES_ARE
        + (_ONE_SEED if one_seed else ""),
        head=head, rows=rows, groups=list(range(len(rows))),
    )  # fmt: skip


def _mean_over(values: Sequence[float]) -> str:
    return mean_told(mean(values)) if values else "no finished run"


def _tests(collection: Collection) -> Table:
    """The comparison's own tests; else each group against the first of its regime."""
    named = collection.results.get("tests")
    if isinstance(named, list):
        rows = [row for each in named if isinstance(each, dict) and (row := _named_test(each))]
        how = "These comparisons were named before the test seeds ran; secondary ones are not corrected."
    else:
        rows = _computed_tests(collection)
        how = (
            "Every row is against the first of its kind, not a comparison that was named before the runs: read small "
            "p-values as hints."
        )
    return Table(
        id="tests", section="comparison", title="Paired differences",
        text="Difference over the seeds that both have: the same seed means the same problems in the same order, so "
        "the pairing takes that noise out. Two-sided t-test; Holm's correction counts the tests of this table. " + how,
        head=["regime", "score", "difference", "mean ± s.e.", "seeds", "p", "p (Holm)"], rows=rows,
    )  # fmt: skip


def _named_test(told: Record) -> list[str] | None:
    difference, n = number(told.get("difference")), number(told.get("n"))
    if difference is None or n is None:
        return None
    found = Mean(value=difference, stderr=number(told.get("stderr")), n=int(n))
    return [
        str(told.get("regime", "")), SCORES.get(str(told.get("score")), str(told.get("score"))),
        f"{told.get('one')} − {told.get('other')}", mean_told(found, "+"), str(found.n),
        probability(number(told.get("p"))),
        "secondary" if told.get("primary") is False else probability(number(told.get("p_holm"))),
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
            SCORES[name],
            pair,
            mean_told(test.difference, "+"),
            str(test.difference.n),
            probability(test.p),
            probability(p),
        ]
        for (regime, name, pair, test), p in zip(tested, corrected, strict=True)
    ]


def _pair(one: Group, other: Group, name: str, notes: list[str]) -> Paired | None:
    mine, theirs = one.scores, other.scores
    seeds = sorted(set(mine) & set(theirs))
    if not seeds:
        return None
    values = [mine[seed].named(name) for seed in seeds], [theirs[seed].named(name) for seed in seeds]
    try:
        return paired(*values)
    except UserError as error:  # scipy is an extra
        if str(error) not in notes:
            notes.append(str(error))
        return Paired(difference=mean([a - b for a, b in zip(*values, strict=True)]), t=None, p=None)


def _each(collection: Collection) -> Table:
    rows, places = [], []
    for place, group in enumerate(collection.groups):
        for run in group.runs:
            before, after = heldout(run)
            score = run_score(run)
            rows.append(
                [
                    group.regime, group.name, "–" if run.seed is None else str(run.seed),
                    "–" if before is None else percent(before[0]), "–" if after is None else percent(after[0]),
                    "–" if score is None else f"{score.auc:.3f}",
                    "not finished" if not run.summary else "collapsed" if score and score.collapsed else "finished",
                ]
            )  # fmt: skip
            places.append(place)
    head = ["regime", "objective", "seed", "pass@1 before", "pass@1 after", "AUC", "state"]
    return Table(
        id="runs", section="comparison", title="The runs one by one",
        text="Every run that this page is of.", head=head, rows=rows, groups=places,
    )  # fmt: skip
