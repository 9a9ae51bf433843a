"""The log of a run is in its folder, and logging is as it was when the run is over."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stun_exp.state.artifacts import LOG
from stun_exp.state.log import RunLog, logging_on

Runner = Callable[..., dict[str, Any]]
OURS = logging.getLogger("stun_exp.a.module")


def lines(folder: Path) -> list[str]:
    """The lines of a log without their times."""
    return [line.split(" ", 2)[2] for line in (folder / LOG).read_text().splitlines()]


def test_a_run_leaves_a_line_for_each_stage_and_its_warnings(
    runner: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = runner("save=true", "unstructured_pruner.min_tokens=100000")
    found = lines(tmp_path / "run")
    stages = [line.split()[1] for line in found if line.startswith("INFO") and " GiB host" in line]
    assert stages == list(report["cost"])
    assert report["warnings"]
    assert [line.removeprefix("WARNING ") for line in found if line.startswith("WARNING")] == report["warnings"]
    said = " ".join(capsys.readouterr().err.split())
    assert all(" ".join(line.split(" ", 1)[1].split()) in said for line in found)


def test_runs_that_go_together_have_their_own_warnings(runner: Runner, tmp_path: Path) -> None:
    runner("sparsity=[0.4,0.5]", "unstructured_pruner.min_tokens=100000", "unstructured_pruner.pattern=2:4")
    for sparsity in ("0.4", "0.5"):
        folder = tmp_path / f"run/sparsity={sparsity}"
        report = json.loads((folder / "report.json").read_text())
        assert f"sparsity={sparsity}" in " ".join(report["warnings"])
        said = [line.removeprefix("WARNING ") for line in lines(folder) if line.startswith("WARNING")]
        assert said == report["warnings"]


def test_a_run_that_goes_on_goes_on_with_its_log(runner: Runner, tmp_path: Path) -> None:
    runner()
    before = lines(tmp_path / "run")
    runner("name=other")
    assert lines(tmp_path / "run")[: len(before)] == before
    assert len(lines(tmp_path / "run")) > len(before)


def test_a_refused_run_leaves_no_log(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="top_k"):
        runner("expert_pruner.ratio=0.8", "sparsity=0.85")
    assert not (tmp_path / "run" / LOG).exists()


def test_a_log_of_somebody_s_is_left_alone(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOG).write_text("mine")
    with pytest.raises(ValueError, match=r"run\.log: the run is to write there, and no run has written that file"):
        runner()
    assert (tmp_path / "run" / LOG).read_text() == "mine"


def test_runs_side_by_side_have_logs_of_their_own(tmp_path: Path) -> None:
    """What is said by none of them is in both."""
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    first, second = map(RunLog, folders)
    with logging_on(), first.attached(), second.attached():
        with first.at_work():
            OURS.info("of %s", "the first")
        first.open()
        second.open()
        with second.at_work():
            OURS.warning("of the second")
        OURS.info("of both")
    assert lines(folders[0]) == ["INFO of the first", "INFO of both"]
    assert lines(folders[1]) == ["WARNING of the second", "INFO of both"]


def test_logging_is_as_it_was(tmp_path: Path) -> None:
    ours = logging.getLogger("stun_exp")
    before = (ours.level, list(ours.handlers), ours.propagate)

    def fail() -> None:
        with logging_on(), RunLog(tmp_path).attached():
            assert ours.level == logging.INFO
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (ours.level, list(ours.handlers), ours.propagate) == before


def test_a_log_that_cannot_be_written_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / LOG).mkdir()
    log = RunLog(tmp_path)
    with logging_on(), log.attached():
        log.open()
        OURS.info("one")
        OURS.info("two")
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("cannot be written; the run goes on") == 1
    assert "one" in said
