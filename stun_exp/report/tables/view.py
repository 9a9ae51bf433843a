"""How a page arranges a table: what rows share is said once, and costs are behind a fold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from stun_exp.report.tables.table import Cell, ResultsTable


@dataclass(frozen=True)
class ShownCell:
    """A cell, and how many rows it stands for."""

    text: str
    bold: bool
    rows: int = 1


@dataclass(frozen=True)
class Grid:
    """Columns, and rows in groups with a heading each, empty for none. A row lacks the cells that reach into it."""

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    groups: tuple[tuple[str, tuple[tuple[ShownCell | None, ...], ...]], ...]


@dataclass(frozen=True)
class View:
    """A table as a page shows it."""

    shared: str
    """What all rows have in common, in a sentence; empty for nothing."""
    main: Grid
    behind: str
    """Names of the columns behind the fold."""
    folded: Grid | None
    """They, and what says which row is which."""


def view(table: ResultsTable) -> View:
    """The arrangement of a table; of its key columns those that are the same in all rows are in the sentence alone.

    Rows without a heading, where others have one, are outside of the comparison: they need not be the same.
    """
    grouped = [place for place in range(len(table.cells)) if not any(table.groups) or table.groups[place]]
    shared = _shared(table, grouped)
    kept = [place for place, column in enumerate(table.columns) if place not in shared and column not in table.headed]
    shown = [place for place in kept if table.columns[place] not in table.folded]
    behind = [p for p in kept if p == 0 or table.columns[p] in table.keys | table.folded] if table.folded else []
    others = dict.fromkeys(table.cells[place][0].text for place in range(len(table.cells)) if place not in grouped)
    but = f" but {', '.join(others)}" if others else ""
    told = "; ".join(f"{table.columns[place]} {table.cells[grouped[0]][place].text}" for place in shared)
    return View(
        shared=f"In all rows{but}: {told}." if told else "",
        main=_grid(table, shown),
        behind=f"More columns: {', '.join(column for column in table.columns if column in table.folded)}",
        folded=_grid(table, behind) if behind else None,
    )


def _shared(table: ResultsTable, grouped: Sequence[int]) -> list[int]:
    """Key columns with one text in all rows; none where there is but one row."""
    if len(grouped) < 2:
        return []
    texts = [{table.cells[row][place].text for row in grouped} for place in range(len(table.columns))]
    said = table.keys - table.headed
    return [place for place, column in enumerate(table.columns) if column in said and len(texts[place]) == 1]


def _grid(table: ResultsTable, places: Sequence[int]) -> Grid:
    headings = table.groups or ("",) * len(table.cells)
    spanning = 1 + next((n for n, p in enumerate(places[1:]) if table.columns[p] not in table.keys), len(places) - 1)
    groups = []
    for heading, numbers in groupby(range(len(table.cells)), key=lambda row: headings[row]):
        rows = [[table.cells[row][place] for place in places] for row in numbers]
        groups.append((heading, tuple(_spanned(rows, spanning))))
    return Grid(
        tuple(table.columns[place] for place in places), tuple(table.numeric[place] for place in places), tuple(groups)
    )


def _spanned(rows: Sequence[Sequence[Cell]], spanning: int) -> Iterator[tuple[ShownCell | None, ...]]:
    """Each row; one of its first cells reaches over the rows below that are the same up to it."""

    def first(row: int, place: int) -> bool:
        before = None if row == 0 else [cell.text for cell in rows[row - 1][: place + 1]]
        return before != [cell.text for cell in rows[row][: place + 1]]

    def reach(row: int, place: int) -> int:
        return next((below for below in range(row + 1, len(rows)) if first(below, place)), len(rows)) - row

    for number, row in enumerate(rows):
        yield tuple(
            ShownCell(cell.text, cell.bold, reach(number, place) if place < spanning else 1)
            if place >= spanning or first(number, place)
            else None
            for place, cell in enumerate(row)
        )
