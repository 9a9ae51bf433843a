"""Tables for other programs: LaTeX with booktabs, and CSV."""

from stun_exp.report.tables.table import Cell, ResultsTable

# One pass over the text, so that what stands for one character is not taken for others. pandas' own escaping leaves
# <, >, | and " as they are, of which packages make commands, and characters that LaTeX does not know.
_LATEX = str.maketrans(
    {
        **{char: "\\" + char for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        "±": r"$\pm$",
        "≤": r"$\leq$",
    }
)


def latex(table: ResultsTable, caption: str) -> str:
    r"""A `table` environment for a document that has `\usepackage{booktabs}` and `\usepackage[T1]{fontenc}`.

    Columns of numbers are set to the right; notes stand in small type below.
    """
    from pandas import DataFrame

    cells = [[_cell(cell) for cell in row] for row in table.cells]
    style = DataFrame(cells, columns=range(len(table.columns))).style.hide(axis="index")
    headings: dict[object, str] = {place: _escaped(column) for place, column in enumerate(table.columns)}
    style.format_index(headings.__getitem__, axis="columns")  # by their places: two may be equal
    text: str = style.to_latex(
        hrules=True,
        column_format="".join("r" if number else "l" for number in table.numeric),
        caption=_escaped(caption),
        position_float="centering",
    )
    end = "\\end{table}\n"
    notes = "".join(rf"\par\smallskip{{\footnotesize {_escaped(note)}\par}}" + "\n" for note in table.notes)
    return text.removesuffix(end) + notes + end


def comma_separated(table: ResultsTable) -> str:
    """The same with all digits and in the same units; a number's standard error has a column of its own behind it.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    from pandas import DataFrame

    errors = [any(row[i].error is not None for row in table.cells) for i in range(len(table.columns))]
    pairs = zip(table.columns, errors, strict=True)
    headings = [_no_formula(name) for column, error in pairs for name in [column, f"{column} stderr"][: 1 + error]]
    rows = [
        [part for cell, error in zip(row, errors, strict=True) for part in _exact(cell)[: 1 + error]]
        for row in table.cells
    ]
    text: str = DataFrame(rows, columns=headings).to_csv(index=False, lineterminator="\n")
    return text


def _exact(cell: Cell) -> list[str]:
    """A number and its error; text as it is, and nothing for the dash that stands for nothing."""
    error = "" if cell.error is None else repr(cell.error)
    if cell.value is not None:
        return [repr(cell.value), error]
    return ["" if cell.text == "-" else _no_formula(cell.text), error]


def _no_formula(text: str) -> str:
    line = text.replace("\r", " ")  # the writer would not quote it, and readers end a line there
    if not text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return line
    try:
        float(text)
    except ValueError:
        return f"'{line}"
    return line


def _cell(cell: Cell) -> str:
    return rf"\textbf{{{_escaped(cell.text)}}}" if cell.bold else _escaped(cell.text)


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)  # an empty line would end a cell
