"""Reports as a table of pandas: each column by hand, and what is passed over."""

import json
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from stun_exp.report.data.frame import read_reports

Make = Callable[..., dict[str, Any]]


def write(folder: Path, content: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(content))


def test_a_row_by_hand(make_report: Make, tmp_path: Path) -> None:
    """Stages were charged 0.26, 2.0 and 3.6 s; of the first the run itself spent 0.01."""
    report = make_report("STUN", 0.5, 2.0, seed=3, sparsity=0.4, choices={"method": "stun_owl"})
    report["sparsity"]["achieved"] = 0.4002
    write(tmp_path / "0", report)
    frame = read_reports(str(tmp_path))
    (row,) = frame.to_dict("records")
    assert list(row)[:4] == ["name", "seed", "folder", "model"]
    assert [row[key] for key in list(row)[:4]] == ["STUN", 3, str(tmp_path / "0"), "bundled:toy_moe"]
    assert (row["model_card"], row["method"], row["calibration"]) == ("toy_moe", "stun_owl", "toy")
    assert "hydra/launcher" not in row
    assert (row["sparsity"], row["expert_pruner.ratio"], row["eval.batch_size"]) == (0.4, 0.2, 32)
    assert (row["achieved_sparsity"], row["experts_ratio"]) == (0.4002, 0.203)
    assert (row["arc/acc,none"], row["arc/acc,none stderr"], row["text/byte_perplexity,none"]) == (0.5, 0.025, 2.0)
    assert isnan(row["text/byte_perplexity,none stderr"])
    assert row["wall_seconds"] == pytest.approx(0.01 + 2.0 + 3.6)
    assert row["charged_seconds"] == pytest.approx(0.26 + 2.0 + 3.6)
    assert frame["text/byte_perplexity,none stderr"].dtype == float


def test_rows_come_by_number_and_what_a_run_lacks_is_missing(make_report: Make, tmp_path: Path) -> None:
    """Job 10 after job 2. The choice none of a group is no gap, and leaves its settings out."""
    write(tmp_path / "10", make_report("b", perplexity=float("inf"), **{"expert_pruner.lambda2": 1.0}))
    write(tmp_path / "2", make_report("a", choices={"recovery": "none"}, expert_pruner={"_target_": "none"}))
    frame = read_reports(tmp_path)
    assert list(frame["name"]) == ["a", "b"]
    assert frame["expert_pruner.lambda2"].isna().tolist() == [True, False]
    assert frame["text/byte_perplexity,none"].tolist()[1] == float("inf")
    assert frame["recovery"].tolist()[0] == "none"


def test_what_is_skipped_is_warned_of(make_report: Make, tmp_path: Path) -> None:
    write(tmp_path / "old", make_report() | {"schema": 1})
    write(tmp_path / "good", make_report())
    with pytest.warns(UserWarning, match=r"skipped .*old: a report of schema 1, and this version reads schema"):
        assert len(read_reports(tmp_path)) == 1


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no report to read in"):
        read_reports(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or file"):
        read_reports(tmp_path / "nowhere")
