"""What a search for good settings goes by."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stun_exp.cli.objective import objective

Make = Callable[..., dict[str, Any]]


def folder(path: Path, report: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "report.json").write_text(json.dumps(report))
    return path


def test_it_is_the_mean_error_and_perplexities_do_not_count_beside_it(tmp_path: Path, make_report: Make) -> None:
    """1 - 0.75; by metrics that are nobody's headline (`arc/other`) it would be negative."""
    assert objective([folder(tmp_path / "a", make_report(accuracy=0.75, perplexity=7.0))]) == 0.25


def test_it_is_the_perplexity_where_there_is_nothing_else(tmp_path: Path, make_report: Make) -> None:
    report = make_report(perplexity=7.0)
    del report["settings"]["eval"]["benchmarks"]["arc"]
    assert objective([folder(tmp_path / "a", report)]) == 7.0


def test_of_several_runs_it_is_their_mean(tmp_path: Path, make_report: Make) -> None:
    folders = [folder(tmp_path / str(accuracy), make_report(accuracy=accuracy)) for accuracy in (0.5, 0.25)]
    assert objective(folders) == pytest.approx(0.625)


def test_without_a_benchmark_there_is_none(tmp_path: Path, make_report: Make) -> None:
    report = make_report()
    report["settings"]["eval"]["benchmarks"] = {}
    assert objective([folder(tmp_path / "a", report)]) is None


def test_a_dry_run_has_none(tmp_path: Path) -> None:
    assert objective([tmp_path]) is None
