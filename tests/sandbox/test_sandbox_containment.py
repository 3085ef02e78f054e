"""No hostile program breaks out, harms the host or disturbs the next program, on each engine and as each user."""

from __future__ import annotations

from typing import Any

import pytest
from sandbox_hostile import HOSTILE


@pytest.mark.parametrize("name", HOSTILE)
def test_contained(name: str, reports: dict[str, dict[str, Any]]) -> None:
    report = reports[name]
    assert "ESCAPED" not in report["stdout"]
    assert report["status"] in HOSTILE[name][1], report["stderr"]
    assert not report["secret"], "a secret of the host's was in the output"
    assert report["changed"] == {}, "the host is not as it was"
    assert report["heard"] == [], "something arrived at the host's listeners"
    assert report["leftovers"] == 0, "processes were left running"
    assert report["answer"] == "42\n", "the next program got no answer"
    assert report["took"] < 15.0, "a program outlived its time limit"


def test_runs_as_the_user_it_says(engine: str) -> None:
    """The reports for an ordinary user really come from an ordinary user."""
    from sandbox_helpers import hostile_reports

    uids = {report["uid"] for report in hostile_reports(engine, "ordinary").values()}
    assert uids == {65534}
