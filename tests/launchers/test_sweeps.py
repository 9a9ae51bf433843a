"""A sweep ends with the same table under every launcher, and also if a worker is killed in the middle of a point."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

GRID = ("sparsity=0.3,0.4,0.5", "calibration.num_sequences=8", "eval.limit=4")
GRID += tuple(f"~eval.benchmarks.{name}" for name in ("toy_arc", "toy_gsm8k", "toy_hellaswag", "toy_mmlu"))
# The second point asks for more tokens than the model takes, which shows when it is run.
ONE_FAILS = ("calibration.sequence_length=64,99999", "calibration.num_sequences=8", "eval=none")

Make = Callable[..., Any]
Table = list[dict[str, str]]


@pytest.fixture(scope="module")
def undisturbed(sweep: Make) -> Table:
    """The table of the sweep, run one point after the other."""
    serial = sweep("local", *GRID)
    assert serial.run() == 0, serial.log.read_text()
    assert [float(row["total sparsity"]) for row in serial.table()] == pytest.approx([30, 40, 50], abs=0.1)
    return list(serial.table())


def reports(sweep: Any) -> set[tuple[Path, int]]:
    """Each report and when it was written."""
    return {(file, file.stat().st_mtime_ns) for file in sweep.folder.glob("*/report.json")}


def check(sweep: Any, undisturbed: Table) -> None:
    """The sweep whose worker was killed went on with that point, and ended as if nothing had been."""
    said = [sweep.log, *sweep.folder.glob(".submitit/*/*.out")]
    assert any("goes on with the interrupted run" in file.read_text() for file in said)
    assert sweep.table() == undisturbed


def check_again(sweep: Any, undisturbed: Table) -> None:
    """The same command once more runs no point again, and ends with the same table."""
    before = reports(sweep)
    assert before
    assert sweep.run() == 0, sweep.log.read_text()
    assert reports(sweep) == before
    assert sweep.table() == undisturbed


@pytest.mark.parametrize("launcher", ["local", "joblib"])
def test_a_sweep_started_again_after_a_kill(sweep: Make, undisturbed: Table, launcher: str) -> None:
    killed = sweep(launcher, *GRID)
    with killed.started() as process:
        killed.kill_a_worker()
        assert process.wait(timeout=300) != 0
    before = reports(killed)
    assert killed.run() == 0, killed.log.read_text()
    assert before <= reports(killed)  # what was done is not done again
    check(killed, undisturbed)


def test_slurm_queues_a_killed_point_again(sweep: Make, undisturbed: Table, slurm: Any) -> None:
    killed = sweep("slurm", *GRID)
    with killed.started() as process:
        killed.kill_a_worker()
        slurm.hurry()
        assert process.wait(timeout=300) == 0, killed.log.read_text()
    check(killed, undisturbed)
    check_again(killed, undisturbed)


def test_ray_runs_a_killed_point_again(sweep: Make, undisturbed: Table) -> None:
    killed = sweep("ray", *GRID)
    with killed.started() as process:
        killed.kill_a_worker()
        assert process.wait(timeout=300) == 0, killed.log.read_text()
    check(killed, undisturbed)
    check_again(killed, undisturbed)


@pytest.mark.parametrize("launcher", ["local", "joblib", "slurm", "ray"])
def test_a_failed_point_does_not_stop_the_others(sweep: Make, launcher: str) -> None:
    """The command says which failed, and why in a line, and nothing of how it was launched that a user cannot use."""
    fails = sweep(launcher, *ONE_FAILS)
    assert fails.run() == 1
    assert len(fails.table()) == 1
    said = fails.log.read_text()
    assert "calibration.sequence_length=99999: the model takes at most" in said
    assert "Traceback" not in said
    assert "is validated against ConfigStore schema" not in said
