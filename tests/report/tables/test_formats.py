"""LaTeX and CSV, read back."""

import csv
import io
import re

import pytest

from stun_exp.report.tables.formats import comma_separated, latex
from stun_exp.report.tables.table import Cell, ResultsTable

TABLE = ResultsTable(
    ["method", "toy_arc (acc)", "p"],
    [
        [Cell("R&D_1 {50 %} ~^\\ $#<>|"), Cell("33.3 ± 0.1", 100 / 3, 0.125, bold=True), Cell("-")],
        [Cell("b, c"), Cell("2.0", 2.0), Cell("<0.001", 0.0001)],
    ],
    ("100 % of it.",),
)


def test_latex_is_a_booktabs_table() -> None:
    text = latex(TABLE, "a_b")
    assert r"\begin{tabular}{lrr}" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\textbf{33.3 $\pm$ 0.1}" in text
    assert r"\caption{a\_b}" in text
    assert r"\footnotesize 100 \% of it." in text


def test_latex_reads_what_is_special_as_text() -> None:
    """A backslash becomes a command with braces, which must not be escaped once more."""
    line = next(line for line in latex(TABLE, "").splitlines() if line.startswith("R"))
    name, *_ = line.split(" & ")
    assert name == (
        r"R\&D\_1 \{50 \%\} \textasciitilde{}\textasciicircum{}\textbackslash{} "
        r"\$\#\textless{}\textgreater{}\textbar{}"
    )


def test_latex_has_its_braces_in_pairs_and_as_many_cells_in_every_line() -> None:
    text = latex(TABLE, "a {b")
    bare = re.sub(r"\\[{}\\]", "", text)
    assert bare.count("{") == bare.count("}")
    rows = [re.sub(r"\\&", "", line) for line in text.splitlines() if line.endswith(r"\\")]
    assert [row.count("&") for row in rows] == [2, 2, 2]
    assert re.findall(r"\\begin{(\w+)}", text) == re.findall(r"\\end{(\w+)}", text)[::-1]


def test_latex_has_columns_of_any_name() -> None:
    """Two of one name, and braces, which a formatter of strings would fill in."""
    text = latex(ResultsTable(["a", "a", "{1} {x!r}"], [[Cell("b"), Cell("c"), Cell("{0}")]]), "")
    assert r"a & a & \{1\} \{x!r\} \\" in text
    assert r"b & c & \{0\} \\" in text


def test_a_table_without_rows_has_its_columns() -> None:
    empty = ResultsTable(["a", "b"], [])
    assert "a & b" in latex(empty, "")
    assert comma_separated(empty) == "a,b\n"


def test_csv_has_every_digit_and_the_error_beside_it() -> None:
    header, first, second = csv.reader(io.StringIO(comma_separated(TABLE)))
    assert header == ["method", "toy_arc (acc)", "toy_arc (acc) stderr", "p"]
    assert float(first[1]) == 100 / 3
    assert first[2:] == ["0.125", ""]
    assert second == ["b, c", "2.0", "", "0.0001"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1"])
def test_csv_has_no_formula(text: str) -> None:
    table = ResultsTable([text, "b"], [[Cell(text), Cell("-")]])
    told = "'" + text.replace("\r", " ")
    assert list(csv.reader(io.StringIO(comma_separated(table), newline=""))) == [[told, "b"], [told, ""]]


@pytest.mark.parametrize("text", ["-5", "+5.3", "-1e-3", "a=b", "<0.001"])
def test_csv_has_numbers_as_they_are(text: str) -> None:
    assert comma_separated(ResultsTable(["a"], [[Cell(text)]])) == f"a\n{text}\n"
