"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["row", "table"]


def row(cells: Sequence[str]) -> str:
    """One row of a table. A bar in a cell would end it, and so is escaped."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [row(columns), row(["---"] * len(columns)), *map(row, rows)]
