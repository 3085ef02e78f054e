"""The runs that a report shows, in groups that differ only in the seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctpo.errors import UserError, one_line
from ctpo.runs.files import leads_out, read_text
from ctpo.runs.identity import CHANGES_NOTHING, deciding_settings
from ctpo.runs.reader import Record, Run, is_run, number, read_run
from ctpo.runs.scores import Score, score, score_name

_MAY_DIFFER = CHANGES_NOTHING | {"seed", "threads"}
"""Settings in which the runs of one group may differ. The number of threads changes only how sums are rounded."""
_LONGEST_NAME = 60


@dataclass(kw_only=True)
class Group:
    """Runs that differ only in the seed."""

    name: str
    regime: str
    """The regime of the comparison that the runs belong to; empty for other runs."""
    runs: list[Run]

    @property
    def scores(self) -> dict[int, Score]:
        """The scores of the finished runs by seed. Of two runs with the same seed, the first counts."""
        scores: dict[int, Score] = {}
        for run in self.runs:
            if run.seed is not None and run.seed not in scores and (known := run_score(run)) is not None:
                scores[run.seed] = known
        return scores


@dataclass(kw_only=True)
class Collection:
    """Everything that a report shows."""

    groups: list[Group]
    results: Record = field(default_factory=dict)
    """The `results.json` of a comparison; empty unless the report shows exactly one comparison and nothing else."""
    notes: list[str] = field(default_factory=list)
    """What is missing from the report as a whole, one sentence each."""

    @property
    def runs(self) -> list[Run]:
        """All runs, group by group."""
        return [run for group in self.groups for run in group.runs]

    @property
    def score_name(self) -> str:
        """ "pass@1", or "score" if held-out responses of one of the runs were graded."""
        return score_name(run.summary.get(when) for run in self.runs for when in ("before", "after"))

    @property
    def regimes(self) -> list[str]:
        """The regimes, in the order of the groups."""
        return list(dict.fromkeys(group.regime for group in self.groups))

    def name(self, group: Group) -> str:
        """Return the group's name, preceded by its regime if there are several."""
        return f"{group.regime}: {group.name}" if len(self.regimes) > 1 else group.name


def run_score(run: Run) -> Score | None:
    """Return the scores of a run; None if it is not finished or too much of its files is damaged."""
    try:
        known = score(run.summary, run.records)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    return known if None not in map(number, (known.final, known.auc, known.seconds)) else None


def collect(paths: Sequence[Path]) -> Collection:
    """Read all runs below the given paths.

    Args:
        paths: each is the directory of a run, the directory of a comparison, or a directory that holds runs.

    Raises:
        UserError: if there is nothing to read at all.
    """
    notes: list[str] = []
    groups: list[Group] = []
    results: list[Record] = []
    alone: list[Run] = []
    for path in {path.resolve(): path for path in paths}.values():
        if is_run(path):
            alone.append(read_run(path))
        elif path.joinpath("runs").is_dir():
            compared, content = _read_comparison(path, notes)
            groups += compared
            results.append(content)
        else:
            below = [read_run(each) for each in _directories(path) if is_run(each)]
            if not below:
                notes.append(f"{path} holds no run: {_why_no_run(path)}")
            alone += below
    groups += _grouped(alone, notes)
    groups = [group for group in groups if group.runs]
    readable = any(run.records or run.summary or run.config for group in groups for run in group.runs)
    if not readable and not any(results):
        raise UserError(f"nothing to report: {notes[0] if notes else f'{paths[0]} holds no readable file'}")
    collection = Collection(
        groups=groups, notes=notes, results=results[0] if len(results) == 1 and not alone else {}
    )
    collection.notes += [*_missing_runs(collection), *_mixed_versions(collection.runs)]
    return collection


def _why_no_run(path: Path) -> str:
    if not path.exists():
        return "it does not exist"
    return "no config.yaml, metrics.jsonl or summary.json; give a run's or a comparison's directory"


def _directories(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.iterdir() if each.is_dir())
    except OSError:
        return []


def _read_comparison(path: Path, notes: list[str]) -> tuple[list[Group], Record]:
    """Return the groups of a comparison and its `results.json`. Runs that only served the tuning are left out."""
    results = _read_results(path, notes)
    chosen = {
        (str(row.get("regime")), str(row.get("arm"))): row.get("setting") or {}
        for row in _rows(results, "objectives")
    }
    test_seeds = results.get("test_seeds")
    seeds = test_seeds if isinstance(test_seeds, list) else []
    groups: dict[tuple[str, str, str], Group] = {}
    left_out = 0
    for directory in sorted(path.glob("runs/*/*/*/seed-*/run")):
        regime, arm, setting = directory.relative_to(path).parts[1:4]
        run = read_run(directory)
        wanted = chosen.get((regime, arm))
        if results and (wanted is None or run.seed not in seeds or not _has_setting(run.config, wanted)):
            left_out += 1
            continue
        name = arm if results or setting == "untuned" else f"{arm} {setting}"
        groups.setdefault((regime, arm, setting), Group(name=name, regime=regime, runs=[])).runs.append(run)
    if left_out:
        notes.append(
            f"{left_out} runs are left out: they tuned the settings, or ran with settings that were not chosen"
        )
    if not groups and not results:
        notes.append(
            f"{path} holds no run: a comparison keeps them in runs/REGIME/OBJECTIVE/SETTING/seed-N/run"
        )
    order = {key: place for place, key in enumerate(chosen)}
    ranked = sorted(groups.items(), key=lambda item: (order.get(item[0][:2], len(order)), item[0]))
    for _, group in ranked:
        group.runs.sort(key=lambda run: (run.seed is None, run.seed))
    return [group for _, group in ranked], results


def _read_results(path: Path, notes: list[str]) -> Record:
    try:
        if leads_out(path / "results.json", path):
            raise ValueError("it is a link that leads out of the directory")
        content = json.loads(read_text(path / "results.json"))
        if isinstance(content, dict):
            notes += [
                f"failed: {each.get('run')}: {each.get('reason')}" for each in _rows(content, "failures")
            ]
            return content
        reason = "not a mapping"
    except FileNotFoundError:
        reason = "it is missing: the comparison is not finished, or `ctpo compare --status` has not been run"
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(str(getattr(error, "strerror", None) or error))
    notes.append(f"results.json is left out ({reason}); the tests below are computed from the runs here")
    return {}


def _rows(results: Record, name: str) -> list[Record]:
    rows = results.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _has_setting(config: Record, setting: Any) -> bool:
    """Return whether a run's recipe has these values, nested ones included."""
    if not isinstance(setting, Mapping):
        return True
    for key, value in setting.items():
        held = config.get(key)
        if isinstance(value, Mapping):
            if not isinstance(held, Mapping) or not _has_setting(held, value):
                return False
        elif held != value:
            return False
    return True


def _grouped(runs: Iterable[Run], notes: list[str]) -> list[Group]:
    by_recipe: dict[str, list[Run]] = {}
    for run in runs:
        recipe = deciding_settings(run.config, _MAY_DIFFER)
        key = json.dumps(recipe, sort_keys=True, default=str) if recipe else f"{run.objective} of {run.path}"
        by_recipe.setdefault(key, []).append(run)
    groups = []
    for name, members in zip(_names(list(by_recipe.values())), by_recipe.values(), strict=True):
        members.sort(key=lambda run: (run.seed is None, run.seed))
        repeated = [seed for seed, count in Counter(run.seed for run in members).items() if count > 1]
        if repeated:
            notes.append(f"{name}: seed {repeated[0]} is there more than once; statistics count it once")
        groups.append(Group(name=name, regime="", runs=members))
    return groups


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Return a name for each group: its objective, and the settings that tell it from others of that objective."""
    recipes = [flatten(members[0].config) for members in groups]
    objectives = [members[0].objective for members in groups]
    names = []
    for recipe, objective, members in zip(recipes, objectives, groups, strict=True):
        others = [each for each, other in zip(recipes, objectives, strict=True) if other == objective]
        differing = [
            key
            for key in recipe
            if key.split(".")[0] not in _MAY_DIFFER and any(other.get(key) != recipe[key] for other in others)
        ]
        words = [f"{key.split('.')[-1]} {recipe[key]}" for key in differing]
        name = ", ".join([objective, *words])
        names.append(name if len(name) <= _LONGEST_NAME else f"{objective} ({members[0].path.name})")
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} #{place}" for place, name in enumerate(names, start=1)]


def flatten(config: Record, prefix: str = "") -> dict[str, Any]:
    """Return a recipe without nested mappings: their keys become `outer.inner`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _missing_runs(collection: Collection) -> list[str]:
    """Return a note if a comparison scored more runs than have their files here."""
    counts = [row.get("n") for row in _rows(collection.results, "objectives")]
    scored = sum(count for count in counts if isinstance(count, int))
    if scored <= len(collection.runs):
        return []
    return [
        f"results.json scores {scored} runs, but the files of only {len(collection.runs)} are here; the curves show "
        "those"
    ]


def _mixed_versions(runs: Sequence[Run]) -> list[str]:
    """Return a note for each package of which the runs had different versions."""
    seen: dict[str, Counter[str]] = {}
    for run in runs:
        packages = run.environment.get("packages")
        versions = {
            **{key: run.environment.get(key) for key in ("ctpo", "python")},
            **(packages if isinstance(packages, Mapping) else {}),
        }
        for name, version in versions.items():
            if version is not None:
                seen.setdefault(name, Counter())[str(version)] += 1
    return [
        f"the runs had different versions of {name}: "
        + ", ".join(
            f"{version} ({count} run{'s' * (count > 1)})" for version, count in versions.most_common()
        )
        for name, versions in seen.items()
        if len(versions) > 1
    ]
