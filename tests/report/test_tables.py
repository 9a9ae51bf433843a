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
        "seed": 0,
        "settings": {"eval": {"benchmarks": benchmarks}},
        "experts": {"ratio": 0.203},
        "sparsity": {"achieved": 0.40004},
        "metrics": metrics,
        "cost": {
            "experts": stage(0.26, 0.5, passes=16.0),
            "prune": stage(2.0, 1.25, passes=1.7),
            "evaluate": stage(3.6, 9.0),
        },
    }


def stage(seconds: float, host: float, device: float | None = None, passes: float = 0.0) -> dict[str, Any]:
    return {
        "wall_seconds": seconds,
        "peak_host_gib": host,
        "peak_device_gib": device,
        "forward_passes": passes,
    }


def test_a_row_by_hand() -> None:
    """The peak is that of pruning: evaluating loads the whole model, which pruning need not."""
    table = results_table([report("STUN", 0.8125, 1.23456)])
    cost = ["passes", "choosing (s)", "peak GiB", "seconds"]
    assert table.columns[3:] == ["arc (acc)", "text (byte_perplexity)", *cost]
    assert table.rows == [["STUN", "20.3 %", "40.00 %", "81.2 ± 2.5", "1.235", "16", "0.3", "1.25", "6"]]


@pytest.mark.parametrize(
    ("passes", "shown"),
    [(0.0, "0"), (1.0, "1"), (3 * (16 / 3), "16"), (4.75, "4.8"), (1 + 2 / 3, "1.7"), (0.97, "1.0")],
)
def test_passes_are_whole_or_have_one_decimal(passes: float, shown: str) -> None:
    """0.97 of a pass is not shown as one whole pass."""
    one = report("a", 0.5)
    one["cost"]["experts"]["forward_passes"] = passes
    assert results_table([one]).rows[0][4] == shown


def test_the_peak_is_the_device_s_where_there_is_one() -> None:
    """Host memory is then mostly the libraries, and larger."""
    one = report("a", 0.5)
    one["cost"] = {"experts": stage(1, 8.0, 0.5), "prune": stage(1, 9.0, 2.5), "evaluate": stage(1, 1.0, 7.0)}
    assert results_table([one]).rows[0][6] == "2.50"


def test_skipped_is_a_column_only_where_a_run_skips() -> None:
    """Reports from before skipping have no such entry, runs with eval=none no share: both are a dash."""
    skipping = {"calibration": 0.25, "evaluation": 0.2449, "per_layer": []}
    off, none, on, bare = report("a", 0.5), report("b", 0.5), report("c", 0.5), report("d", 0.5)
    none["skipping"], on["skipping"], bare["skipping"] = None, skipping, skipping | {"evaluation": None}
    table = results_table([off, none, on, bare])
    assert table.columns[3:5] == ["skipped", "arc (acc)"]
    assert [row[3] for row in table.rows] == ["-", "-", "24.5 %", "-"]
    assert "skipped" not in results_table([off, none]).columns


def test_a_benchmark_that_one_run_lacks_is_a_dash_there() -> None:
    table = results_table([report("a", 0.5), report("b", 0.5, 2.0)])
    assert [row[4] for row in table.rows] == ["-", "2.000"]


def test_no_benchmark_is_a_table_all_the_same() -> None:
    bare = report("a", 0.5) | {"settings": {"eval": {}}, "metrics": {}}
    assert results_table([bare]).columns == [
        *("method", "experts removed", "total sparsity"),
        *("passes", "choosing (s)", "peak GiB", "seconds"),
    ]


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
