"""How a page arranges tables, by hand."""

from stun_exp.report.tables.table import Cell, ResultsTable
from stun_exp.report.tables.view import Grid, view


def table(rows: list[str], **rest: frozenset[str] | tuple[str, ...]) -> ResultsTable:
    """Columns method, kappa, seeds, acc, cost; the first three say what a row is."""
    cells = [[Cell(text) for text in row.split()] for row in rows]
    keys = frozenset(["kappa", "seeds"])
    return ResultsTable(["method", "kappa", "seeds", "acc", "cost"], cells, keys=keys, **rest)  # type: ignore[arg-type]


def texts(grid: Grid) -> list[list[str]]:
    """Rows without the cells that reach into them; `x*2` reaches over two rows."""
    return [
        [cell.text + f"*{cell.rows}" * (cell.rows > 1) for cell in row if cell is not None]
        for _, rows in grid.groups
        for row in rows
    ]


def test_a_name_is_said_once_for_the_rows_below_each_other() -> None:
    """A setting too, as long as all before it is the same; figures never."""
    shown = view(table(["a 0 1 50 9", "a 0 2 50 9", "a 3 2 50 9", "b 3 2 50 9"]))
    assert texts(shown.main) == [
        ["a*3", "0*2", "1", "50", "9"],
        ["2", "50", "9"],
        ["3", "2", "50", "9"],
        ["b", "3", "2", "50", "9"],
    ]


def test_what_is_the_same_in_all_rows_is_said_above_the_table() -> None:
    shown = view(table(["a 0 3 50 9", "b 1 3 50 9"]))
    assert shown.shared == "In all rows: seeds 3."
    assert shown.main.columns == ("method", "kappa", "acc", "cost")
    assert texts(shown.main) == [["a", "0", "50", "9"], ["b", "1", "50", "9"]]


def test_rows_outside_of_the_groups_need_not_share_it() -> None:
    shown = view(table(["unpruned - 1 99 -", "a 0 3 50 9", "b 0 3 40 9"], groups=("", "40 %", "40 %")))
    assert shown.shared == "In all rows but unpruned: kappa 0; seeds 3."
    assert [heading for heading, _ in shown.main.groups] == ["", "40 %"]


def test_one_row_shares_nothing() -> None:
    assert view(table(["a 0 3 50 9"])).shared == ""
    assert view(table([])).shared == ""


def test_costs_are_behind_a_fold_with_what_says_which_row_is_which() -> None:
    shown = view(table(["a 0 1 50 9", "a 1 2 40 8"], folded=frozenset(["cost"])))
    assert shown.main.columns == ("method", "kappa", "seeds", "acc")
    assert shown.behind == "More columns: cost"
    assert shown.folded is not None
    assert shown.folded.columns == ("method", "kappa", "seeds", "cost")
    assert texts(shown.folded) == [["a*2", "0", "1", "9"], ["1", "2", "8"]]
    assert view(table(["a 0 1 50 9"])).folded is None


def test_what_headings_say_has_no_column_and_ends_the_reach_of_a_name() -> None:
    rows = ["a 0 1 50 9", "a 1 1 40 8", "a 0 1 30 7"]
    shown = view(table(rows, groups=("40 %", "40 %", "65 %"), headed=frozenset(["seeds"])))
    assert shown.shared == ""
    assert shown.main.columns == ("method", "kappa", "acc", "cost")
    assert texts(shown.main) == [["a*2", "0", "50", "9"], ["1", "40", "8"], ["a", "0", "30", "7"]]
