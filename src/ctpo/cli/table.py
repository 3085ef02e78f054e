"""Plain text tables, for commands that need no terminal library."""

from __future__ import annotations

from collections.abc import Sequence

from ctpo.errors import one_line


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", left: int = 1) -> str:
    """A table as text, each column as wide as its longest cell. Cells hold nothing that controls a terminal.

    Args:
        head: the headings.
        rows: the cells of each row; an empty row draws a line. A short row leaves its last cells empty.
        title: a line above the table.
        left: the number of columns, from the first, that are aligned to the left. The others are aligned to the right.
    """
    head = [one_line(cell) for cell in head]
    full = [[*map(one_line, row), *[""] * (len(head) - len(row))] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *full, strict=True)]
    line = "─" * (sum(widths) + 2 * (len(widths) - 1))

    def aligned(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    body = [aligned(cells) if row else line for cells, row in zip(full, rows, strict=True)]
    return "\n".join([*([one_line(title)] if title else []), aligned(head), line, *body])
