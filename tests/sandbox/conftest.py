"""Engines and users to test as."""

from __future__ import annotations

import os
from typing import Any

import pytest
from sandbox_helpers import ENGINES, hostile_reports, unavailable


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each engine that holds here. In CI, where both must be available, a missing one is a failure."""
    name: str = request.param
    if (reason := unavailable(name)) is not None:
        if os.environ.get("CTPO_REQUIRE_SANDBOX"):
            pytest.fail(reason)
        pytest.skip(reason)
    return name


@pytest.fixture(params=("self", "ordinary"))
def reports(request: pytest.FixtureRequest, engine: str) -> dict[str, dict[str, Any]]:
    """The hostile programs' reports, for each engine and user."""
    return hostile_reports(engine, request.param)
