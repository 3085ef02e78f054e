"""Settings and environments: what the runs have in common, and where they differ."""

from __future__ import annotations

from ctpo.report.collection import Collection, flatten
from ctpo.report.tables.comparison import Table
from ctpo.report.tables.words import setting


def settings_tables(collection: Collection) -> list[Table]:
    """Those that have a row."""
    return [table for table in (*_settings(collection), _environment(collection)) if table.rows]


def _settings(collection: Collection) -> list[Table]:
    """What all have in common, and what differs."""
    recipes = [flatten(group.runs[0].config) for group in collection.groups]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    keys = [key for key in keys if key not in ("seed", "output_dir")]
    differing = [key for key in keys if len({repr(recipe.get(key)) for recipe in recipes}) > 1]
    common = [[key, setting(recipes[0].get(key))] for key in keys if key not in differing]
    found = []
    if differing:
        found.append(
            Table(
                id="differing-settings", section="settings", title="Settings that differ",
                text="One row for each group of runs; “–” where a recipe does not have the key.",
                head=["runs", *differing],
                rows=[
                    [collection.name(group), *(setting(recipe.get(key)) for key in differing)]
                    for group, recipe in zip(collection.groups, recipes, strict=True)
                ],
                groups=list(range(len(recipes))),
            )
        )  # fmt: skip
    found.append(
        Table(
            id="settings", section="settings", title="Settings" + (" in common" if differing else ""),
            text="The resolved recipe: `ctpo train` on a run's config.yaml runs it again.",
            head=["key", "value"], rows=common,
        )
    )  # fmt: skip
    return found


def _environment(collection: Collection) -> Table:
    """Versions and machine; where the runs differ, every value with its number of runs."""
    told: dict[str, dict[str, int]] = {}
    for run in collection.runs:
        for key, value in flatten(run.environment).items():
            words = " ".join(map(str, value)) if isinstance(value, list) else setting(value)
            if key == "command" and len(collection.runs) > 1:
                continue  # each run's own
            values = told.setdefault(key.removeprefix("packages."), {})
            values[words] = values.get(words, 0) + 1
    rows = [
        [
            key,
            next(iter(values))
            if len(values) == 1
            else "; ".join(f"{v} ({n} runs)" for v, n in values.items()),
        ]
        for key, values in told.items()
    ]
    return Table(
        id="environment", section="settings", title="Environment", text="What the runs ran on.",
        head=["", "value"], rows=rows,
    )  # fmt: skip
