"""A table of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as they are shown."""

    id: str
    section: str
    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[int | None] = ()
    """The group that a row is of, for its colour."""
