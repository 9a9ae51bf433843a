"""Tables, and the figure, from reports alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from stun_exp.report.figures import quality_by_method
from stun_exp.report.sweep import SweepTable
from stun_exp.report.tables import read_reports, results_table


def report(name: str, accuracy: float, perplexity: float | None = None) -> dict[str, Any]:
    benchmarks = {"arc": {"task": "arc", "metric": "acc,none"}}
    metrics: dict[str, Any] = {"arc/acc,none": {"value": accuracy, "stderr": 0.025}, "arc/other,none": {"value": 9}}
    if perplexity is not None:
        benchmarks["text"] = {"task": "text", "metric": "byte_perplexity,none"}
        metrics["text/byte_perplexity,none"] = {"value": perplexity, "stderr": None}
    return {
        "name": name,
        "settings": {"eval": {"benchmarks": benchmarks}},
        "experts": {"ratio": 0.203},
        "sparsity": {"achieved": 0.40004},
        "metrics": metrics,
        "cost": {"prune": {"wall_seconds": 2.0}, "evaluate": {"wall_seconds": 3.6}},
    }


def test_a_row_by_hand() -> None:
    table = results_table([report("STUN", 0.8125, 1.23456)])
    assert table.columns[3:] == ["arc (acc)", "text (byte_perplexity)", "seconds"]
    assert table.rows == [["STUN", "20.3 %", "40.00 %", "81.2 ± 2.5", "1.235", "6"]]


def test_a_benchmark_that_one_run_lacks_is_a_dash_there() -> None:
    table = results_table([report("a", 0.5), report("b", 0.5, 2.0)])
    assert [row[4] for row in table.rows] == ["-", "2.000"]


def test_no_benchmark_is_a_table_all_the_same() -> None:
    bare = report("a", 0.5) | {"settings": {"eval": {}}, "metrics": {}}
    assert results_table([bare]).columns == ["method", "experts removed", "total sparsity", "seconds"]


def test_markdown_is_a_table() -> None:
    lines = results_table([report("a", 0.5)]).markdown().splitlines()
    assert lines[1].startswith("| --- |")
    assert len({line.count("|") for line in lines}) == 1


def test_runs_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Job 10 comes after job 2, not before it."""
    for number in (10, 2, 0):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "report.json").write_text(json.dumps({"name": str(number)}))
    (tmp_path / "1").mkdir()  # a run that failed has no report
    assert [found["name"] for found in read_reports(tmp_path)] == ["0", "2", "10"]


def test_a_sweep_ends_with_its_table_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "report.json").write_text(json.dumps(report(f"run {number}", 0.5)))
    SweepTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert "run 1" in (tmp_path / "table.md").read_text()
    assert len(json.loads((tmp_path / "table.json").read_text())[0]["rows"]) == 2
    assert f"results: {tmp_path}" in capsys.readouterr().out.replace("\n", "")


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    quality_by_method([report("a", 0.5, 2.0), report("b", 0.6, 2.0)], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
