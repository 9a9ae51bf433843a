"""What a table is: cells, and what has to be said below them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from stun_exp.utils import markdown


@dataclass(frozen=True)
class Cell:
    """One place of a table: text for people; behind it a number and its standard error, in the same unit."""

    text: str
    value: float | None = None
    error: float | None = None
    bold: bool = False


@dataclass(frozen=True)
class ResultsTable:
    """A table, and what has to be said below it; all of it is in files, and a page arranges it (`view`)."""

    columns: list[str]
    cells: list[list[Cell]]
    notes: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    """Columns that say what a row is: a page says once what all rows or neighbors have in common."""
    folded: frozenset[str] = frozenset()
    """Columns that a page shows behind a fold."""
    groups: tuple[str, ...] = ()
    """Of each row the heading that a page puts above it and its neighbors of that heading; empty for none."""
    headed: frozenset[str] = frozenset()
    """Columns that a page leaves out, because the headings say them."""

    @property
    def rows(self) -> list[list[str]]:
        """The texts alone."""
        return [[cell.text for cell in row] for row in self.cells]

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it holds numbers."""
        return [any(row[place].value is not None for row in self.cells) for place in range(len(self.columns))]

    def show(self) -> None:
        """Prints it on standard output, in full width where that is not a terminal."""
        console = _console()
        table = Table(*(Column(name, overflow="fold") for name in self.columns), box=SIMPLE_HEAD, pad_edge=False)
        for row in self.cells:  # a name may hold brackets
            table.add_row(*(f"[bold]{escape(cell.text)}[/]" if cell.bold else escape(cell.text) for cell in row))
        if self.cells:
            console.print(table)
        for note in self.notes:
            console.print(note, markup=False)

    def markdown(self) -> str:
        columns = [markdown.text(column) for column in self.columns]
        rows = [[_bold(markdown.text(cell.text), cell.bold) for cell in row] for row in self.cells]
        lines = [columns, ["---"] * len(columns), *rows]
        notes = [f"\n{markdown.paragraphs(note)}\n" for note in self.notes]
        return "".join([*("| " + " | ".join(line) + " |\n" for line in lines), *notes])


def show_text(paragraphs: Sequence[str]) -> None:
    """Prints text as tables print their notes."""
    console = _console()
    for paragraph in paragraphs:
        console.print(paragraph, markup=False, highlight=False)


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = 200
    return console


def _bold(escaped: str, bold: bool) -> str:
    return f"**{escaped}**" if bold else escaped
