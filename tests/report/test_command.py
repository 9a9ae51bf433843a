"""`stun-report`: what it writes, where, and what it says."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stun_exp.report import command
from stun_exp.report.data.failures import keep_error
from stun_exp.report.figures import draw as figures

Make = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One empty figure instead of those that take seconds, which have tests of their own."""

    def draw(reports: Sequence[Any], folder: str) -> list[figures.Figure]:
        svg = '<svg viewBox="0 0 1 1"></svg>'
        return [figures.Figure(f"{len(reports)} runs", "A caption.", f"{folder}/a", b"\x89PNG", svg)]

    monkeypatch.setattr(figures, "draw_figures", draw)
    monkeypatch.setattr(figures, "draw_figures_over_models", draw)


def sweep(folder: Path, *reports: dict[str, Any]) -> Path:
    for number, report in enumerate(reports):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "report.json").write_text(json.dumps(report))
    return folder


def stun_report(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["stun-report", *map(str, arguments)])
    try:
        command.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_a_sweep_s_report_lies_in_it(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "my_sweep", make_report("a", 0.9, 2.0), make_report("b", 0.1, 3.0))
    assert stun_report(monkeypatch, folder) == 0
    out = capsys.readouterr().out
    assert "byte_perplexity" in out
    told = "At 40 % sparsity a is best on both benchmarks."
    assert told in out
    assert out.endswith(f"report: {folder / 'report' / 'index.html'}\n")
    text = (folder / "report" / "report.md").read_text()
    assert text.startswith(f"# my_sweep\n\n## Conclusion\n\n{told}")
    assert "\n\n## bundled:toy_moe\n\n2 runs." in text
    assert "\n\ncalibration: toy, num_sequences=64\n\n" in text
    assert "| a | 20.3 % | 40.00 % | **90.0 ± 2.5** | **2.000** |" in text
    assert "![2 runs](figures/toy_moe/a.png)\n\nA caption." in text
    assert "## bundled:toy_moe: paired tests" in text
    files = {file.name for file in (folder / "report" / "tables").iterdir()}
    assert files == {f"toy_moe{kind}.{ending}" for kind in ("", "-paired") for ending in ("md", "tex", "csv")}
    page = (folder / "report" / "index.html").read_text()
    assert page.index(told) < page.index("<table>") < page.index("num_sequences=64") < page.index("A caption.")
    assert "<strong>90.0 ± 2.5</strong>" in page
    assert "A caption." in page


def test_a_second_report_reads_no_first_one(make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report lies inside the folder that is read."""
    folder = sweep(tmp_path / "s", make_report("a"), make_report("b"))
    first = command.write_report([folder], folder / "report").read_text()
    monkeypatch.setattr(figures, "draw_figures", lambda reports, folder: [])
    assert command.write_report([folder], folder / "report").read_text() != first
    assert "2 runs." in (folder / "report" / "report.md").read_text()


def test_each_model_has_its_tables(make_report: Make, tmp_path: Path) -> None:
    """A dot in a model's name begins no ending; two sources with one name have two files."""
    models = ("hub/Mixtral-8x7B-v0.1", "one/copy", "other/copy")
    folder = sweep(tmp_path / "s", *(make_report(model=model) for model in models))
    page = command.write_report([folder], tmp_path / "out")
    tables = {file.name for file in (page.parent / "tables").glob("*.csv")}
    assert tables == {"Mixtral-8x7B-v0.1.csv", "copy-1.csv", "copy-2.csv"}
    assert [line for line in (page.parent / "report.md").read_text().splitlines() if line.startswith("## ")] == [
        "## Conclusion",
        *(f"## {model}" for model in models),
        "## All models",
    ]


def test_csv_has_the_figures_of_the_reports(make_report: Make, tmp_path: Path) -> None:
    page = command.write_report([sweep(tmp_path / "s", make_report("a", 1 / 3))], tmp_path / "out")
    with (page.parent / "tables" / "toy_moe.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["arc (acc)"]) == 100 * (1 / 3)
    assert float(row["arc (acc) stderr"]) == 2.5


def test_what_was_skipped_is_told_on_the_page_too(
    make_report: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "s", make_report("a"), make_report("b") | {"schema": 1})
    page = command.write_report([folder], tmp_path / "out")
    told = f"{folder / '1'}: a report of schema 1"
    assert f"skipped {told}" in capsys.readouterr().err
    assert told in page.read_text()
    assert f"## Skipped\n\n{told}" in (tmp_path / "out" / "report.md").read_text()


def test_a_refusal_names_what_differs_and_leaves_nothing(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "s", make_report("a"), make_report("b", **{"eval.limit": 8}))
    assert stun_report(monkeypatch, folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: runs that cannot stand in one table")
    assert f"eval.limit differs: None in {folder / '0'}; 8 in {folder / '1'}" in error
    assert not (folder / "report").exists()
    assert stun_report(monkeypatch, folder / "0") == 0


def test_nothing_to_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stun_report(monkeypatch, tmp_path) == 2
    assert capsys.readouterr().err == f"error: no report to read in {tmp_path}\n"
    assert stun_report(monkeypatch) == 2


def test_a_list_of_reports_has_its_report_beside_it(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "demo.json"
    kept.write_text(json.dumps([make_report("a"), make_report("b")]))
    assert stun_report(monkeypatch, kept) == 0
    text = (tmp_path / "demo_report" / "report.md").read_text()
    assert text.startswith("# demo\n")
    assert "No p-value for want of samples.jsonl: a, b." in text


def test_models_have_figures_together_if_nothing_else_differs(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path / "s", make_report(model="hub/a"), make_report(model="hub/b"))
    assert stun_report(monkeypatch, folder) == 0
    text = (folder / "report" / "report.md").read_text()
    assert "## All models\n\nModels differ in more than their experts.\n\n![2 runs](figures/models/a.png)" in text


def test_models_that_were_measured_otherwise_have_none_and_the_report_says_why(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path / "s", make_report(model="a"), make_report(model="b", sparsity_scope="experts"))
    assert stun_report(monkeypatch, folder) == 0
    text = (folder / "report" / "report.md").read_text()
    assert "No figure has all of them:\n\nsparsity_scope differs: decoder in " in text
    assert not (folder / "report" / "figures" / "models").exists()


def test_two_ways_to_measure_one_model_are_no_models(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path / "s", make_report(model="a"), make_report(model="a", perplexity=2.0))
    assert stun_report(monkeypatch, folder) == 0
    assert "All models" not in (folder / "report" / "report.md").read_text()


def test_runs_without_a_report_are_named_with_their_reason(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "s", make_report())
    for name in ("0", "failed", "killed", "dry"):
        (folder / name / ".hydra").mkdir(parents=True)
    keep_error(folder / "failed", "too many subsets", ValueError("too many subsets"))
    (folder / "dry" / ".hydra" / "config.yaml").write_text("{dry_run: true, sparsity: 0.4}")
    (folder / "killed" / ".hydra" / "config.yaml").write_text("{dry_run: false, sparsity: 0.4}")
    assert stun_report(monkeypatch, folder) == 0
    assert "runs without a report: 2;" in capsys.readouterr().err
    text = (folder / "report" / "report.md").read_text()
    told = [f"{folder / 'failed'}: too many subsets", f"{folder / 'killed'}: did not end; it was killed"]
    assert text.split("## Failed\n\n")[1].startswith("\n\n".join(["Runs without a report:", *told]))


def test_rows_of_different_code_are_told_below_the_table(
    make_report: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = [make_report(name) for name in "ab"]
    for report, digest in zip(reports, ("1", "2"), strict=True):
        report["provenance"]["code"] = {"stun_exp.moe.layers": digest}
    command.write_report([sweep(tmp_path / "s", *reports)], tmp_path / "out")
    told = "Rows were made by different code: stun_exp.moe.layers (1 in "
    texts = [capsys.readouterr().out, *(file.read_text() for file in (tmp_path / "out").rglob("*.[hmt]*"))]
    assert sum(told in text.replace("\n", " ") for text in texts) >= 4, "printed, on the page, in both Markdown files"


def test_models_with_odd_names_have_files_of_their_own(make_report: Make, tmp_path: Path) -> None:
    """Names that would leave the folder, or are those of other files, or too long for a disk."""
    sources = ("a/..", "b/", "c/x-1", "d/x", "e/x", "f/models", "g/x-paired", "h/" + "y" * 400)
    found = sweep(tmp_path / "s", *(make_report(n, model=model) for model in sources for n in "ab"))
    command.write_report([found], tmp_path / "out")
    files = {file.name for file in (tmp_path / "out" / "tables").glob("*.csv")}
    assert len(files) == 2 * len(sources)
    assert all(file.is_relative_to(tmp_path / "out") for file in tmp_path.rglob("a.png"))


def test_a_folder_that_cannot_be_written_is_one_line(
    make_report: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    folder = sweep(tmp_path / "s", make_report())
    assert stun_report(monkeypatch, folder, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'out'}: no folder, where a report's folder is to be;")
