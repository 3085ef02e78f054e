"""A comparison's results as tables, in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MEANS = ("regime", "objective", "setting", "seeds", "final pass@1", "AUC", "collapsed")
_TESTS = ("regime", "score", "difference", "mean ± s.e.", "n", "p", "p (Holm)")


def print_results(found: Mapping[str, Any]) -> None:
    """Both tables and how they came about."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, head, rows in (
        ("means over the test seeds ± standard error", _MEANS, _means(found)),
        ("paired over seeds, two-sided t-test", _TESTS, _tests(found)),
    ):
        table = Table(*head, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        if rows:
            console.print(table)
    console.print(_budget(found), highlight=False)
    for failure in found["failures"]:
        console.print(f"failed: {failure['run']}: {failure['reason']}", highlight=False, markup=False)


def results_markdown(found: Mapping[str, Any]) -> str:
    """The same as a Markdown page."""
    parts = ["# Comparison", _budget(found), _table(_MEANS, _means(found)), _table(_TESTS, _tests(found))]
    return "\n\n".join(parts) + "\n"


def _budget(found: Mapping[str, Any]) -> str:
    tuning, tests = (
        found["tuning"],
        len([each for each in found["tests"] if each["primary"] and each["p"] is not None]),
    )
    if not tuning["seeds"]:
        told = "Nothing was tuned."
    else:
        told = (
            f"Every objective was tuned alike: {tuning['settings_each']} settings x {len(tuning['seeds'])} seeds in "
            f"each regime, chosen by mean {tuning['select_by']}."
        )
    return f"{told} Holm's correction counts {tests} tests; secondary ones are uncorrected."


def _means(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            each["regime"],
            each["arm"],
            _setting(each["setting"]),
            str(each["n"]),
            _mean(each["final"]),
            _mean(each["auc"]),
            f"{each['collapsed']}/{each['n']}",
        )
        for each in found["objectives"]
    ]


def _tests(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            each["regime"],
            each["score"],
            f"{each['one']} − {each['other']}",
            _mean({"mean": each["difference"], "stderr": each["stderr"]}, sign="+"),
            str(each["n"]),
            _p(each["p"]),
            _p(each["p_holm"]) if each["primary"] else "secondary",
        )
        for each in found["tests"]
    ]


def _mean(told: Mapping[str, float | None] | None, sign: str = "") -> str:
    if told is None:
        return "no run"
    stderr = "one seed" if told["stderr"] is None else f"{told['stderr']:.3f}"
    return f"{told['mean']:{sign}.3f} ± {stderr}"


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _setting(setting: Mapping[str, Any]) -> str:
    words = []
    for key, value in setting.items():
        inner = value.items() if isinstance(value, Mapping) else [(key, value)]
        words += [f"{name} {each:g}" if isinstance(each, float) else f"{name} {each}" for name, each in inner]
    return ", ".join(words) or "–"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
