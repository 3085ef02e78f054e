"""The settings and environments of the runs: what they have in common, and where they differ."""

from __future__ import annotations

from ctpo.report.collection import Collection, flatten
from ctpo.report.tables.comparison import Table
from ctpo.report.tables.words import setting


def settings_tables(collection: Collection) -> list[Table]:
    """Return the tables of settings and of environments that have a row."""
    return [table for table in (*_settings(collection), _environment(collection)) if table.rows]


def _settings(collection: Collection) -> list[Table]:
    recipes = [flatten(group.runs[0].config) for group in collection.groups]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    keys = [key for key in keys if key not in ("seed", "output_dir")]
    differing = [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]
    common = [[key, setting(recipes[0].get(key))] for key in keys if key not in differing]
    tables = []
    if differing:
        tables.append(
            Table(
                id="differing-settings", section="settings", title="Settings that differ",
                text="One row per group of runs. “–” means that the recipe does not have the setting.",
                head=["runs", *differing],
                rows=[
                    [collection.name(group), *(setting(recipe.get(key)) for key in differing)]
                    for group, recipe in zip(collection.groups, recipes, strict=True)
                ],
                groups=list(range(len(recipes))),
            )
        )  # fmt: skip
    tables.append(
        Table(
            id="settings", section="settings", title="Settings" + (" in common" if differing else ""),
            text="The complete recipe. `ctpo train` with the config.yaml of a run repeats the run.",
            head=["key", "value"], rows=common,
        )
    )  # fmt: skip
    return tables


def _environment(collection: Collection) -> Table:
    """Return the table of versions and machines; where the runs differ, each value has its number of runs."""
    counts: dict[str, dict[str, int]] = {}
    for run in collection.runs:
        for key, value in flatten(run.environment).items():
            words = " ".join(map(str, value)) if isinstance(value, list) else setting(value)
            if key == "command" and len(collection.runs) > 1:
                continue  # every run has another
            values = counts.setdefault(key.removeprefix("packages."), {})
            values[words] = values.get(words, 0) + 1
    rows = [[key, _counted(values)] for key, values in counts.items()]
    return Table(
        id="environment", section="settings", title="Environment", text="The software and machine of the runs.",
        head=["", "value"], rows=rows,
    )  # fmt: skip


def _counted(values: dict[str, int]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({count} runs)" for value, count in values.items())
