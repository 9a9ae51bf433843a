"""The end of a sweep, from its folder alone: the report, and what failed and why."""

import contextlib
import os
from collections.abc import Callable
from os import utime
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from stun_exp.cli.sweep import SweepEnd, conclude
from stun_exp.report.data.failures import ERROR, failures, forget_error, keep_error
from stun_exp.utils.json_files import write_json

Make = Callable[..., dict[str, Any]]


def config_of(folder: Path, tracker: str = "NoTracker", dry_run: bool = False, **settings: Any) -> DictConfig:
    """What Hydra hands to its callbacks, as far as it is looked at."""
    module = "none" if tracker == "NoTracker" else "wandb"
    trackers = {"_target_": f"stun_exp.tracker.{module}.{tracker}", **settings}
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}, "tracker": trackers, "dry_run": dry_run})


def started(folder: Path) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    return folder


def test_what_failed_is_told_with_its_reason_and_ends_with_1(
    tmp_path: Path, make_report: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(started(tmp_path / "sparsity=0.4") / "report.json", make_report())
    keep_error(started(tmp_path / "sparsity=0.9"), "sparsity is too high", ValueError("sparsity is too high"))
    started(tmp_path / "sparsity=0.95")
    with pytest.raises(SystemExit, match="1"):
        conclude(tmp_path)
    said = capsys.readouterr()
    assert "2 of the sweep's runs failed" in said.err
    assert "sparsity=0.9: sparsity is too high" in said.err
    assert "sparsity=0.95: did not end" in said.err
    assert (tmp_path / "report" / "index.html").is_file()
    assert "Traceback" not in said.err
    assert "ValueError: sparsity is too high" in (tmp_path / "sparsity=0.9" / ERROR).read_text()


def test_a_failure_comes_onto_a_page_that_is_there(tmp_path: Path, make_report: Make) -> None:
    write_json(started(tmp_path / "sparsity=0.4") / "report.json", make_report())
    conclude(tmp_path)
    keep_error(started(tmp_path / "sparsity=0.9"), "sparsity is too high", ValueError())
    with pytest.raises(SystemExit, match="1"):
        conclude(tmp_path)
    assert "sparsity is too high" in (tmp_path / "report" / "index.html").read_text()


@pytest.mark.parametrize("written", ["", "sparsity: [0.4, 0", "model:"])
def test_a_run_that_was_killed_while_it_wrote_its_settings_did_not_end(tmp_path: Path, written: str) -> None:
    (started(tmp_path / "sparsity=0.4") / ".hydra" / "config.yaml").write_text(written)
    assert "did not end" in failures(tmp_path)["sparsity=0.4"]


def test_a_sweep_without_failures_ends_quietly(tmp_path: Path, make_report: Make) -> None:
    write_json(started(tmp_path / "sparsity=0.4") / "report.json", make_report())
    assert failures(tmp_path) == {}
    SweepEnd().on_multirun_end(OmegaConf.create({"dry_run": False, "hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert (tmp_path / "report" / "index.html").is_file()


def test_a_dry_run_of_a_sweep_is_no_failure(tmp_path: Path) -> None:
    """It leaves no report."""
    started(tmp_path / "sparsity=0.4")
    SweepEnd().on_multirun_end(OmegaConf.create({"dry_run": True, "hydra": {"sweep": {"dir": str(tmp_path)}}}))


def test_points_that_cannot_be_compared_are_told_and_do_not_undo_the_sweep(
    tmp_path: Path, make_report: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, scope in (("a", "decoder"), ("b", "model")):
        report = make_report()
        report["settings"]["sparsity_scope"] = scope
        write_json(started(tmp_path / name) / "report.json", report)
    conclude(tmp_path)
    assert "no report of the sweep" in capsys.readouterr().err


def test_a_sweep_that_begins_removes_nothing(tmp_path: Path) -> None:
    """A run that starts again removes what it said itself."""
    keep_error(started(tmp_path / "seed=1"), "no room", OSError("no room"))
    (started(tmp_path / "notes") / ERROR).write_text("mine")
    SweepEnd().on_multirun_start(config_of(tmp_path))
    assert SweepEnd.folder == tmp_path
    SweepEnd.folder = None
    assert failures(tmp_path)["seed=1"] == "no room"
    for run in ("seed=1", "notes"):
        forget_error(tmp_path / run)
    assert not (tmp_path / "seed=1" / ERROR).exists()
    assert (tmp_path / "notes" / ERROR).read_text() == "mine"


def test_an_earlier_failure_is_written_over(tmp_path: Path) -> None:
    for reason in ("one", "two\nlines"):
        keep_error(tmp_path, reason, ValueError(reason))
    assert (tmp_path / ERROR).read_text().startswith("stun: two\nlines\n\n")


def foreign(file: Path, kind: str, elsewhere: Path) -> None:
    """Puts something that no run has written where a run's reason would lie."""
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "dangling":
        file.symlink_to(elsewhere / "nowhere")
    elif kind == "link":
        keep_error(elsewhere, "of another run", ValueError())
        file.symlink_to(elsewhere / ERROR)
    else:
        file.write_bytes(b"\xff\x00mine" if kind == "binary" else b"mine")


@pytest.mark.parametrize("kind", ["text", "binary", "pipe", "folder", "link", "dangling"])
def test_what_no_run_has_written_is_left_alone(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    run, elsewhere = started(tmp_path / "sweep" / "seed=1"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    foreign(run / ERROR, kind, elsewhere)
    before = (run / ERROR).lstat()
    forget_error(run)
    keep_error(run, "no room", OSError("no room"))
    assert f"{run / ERROR}: left as it is" in capsys.readouterr().err
    after = (run / ERROR).lstat()
    assert (before.st_ino, before.st_size, before.st_mtime) == (after.st_ino, after.st_size, after.st_mtime)
    assert "did not end" in failures(tmp_path / "sweep")["seed=1"]
    assert not (elsewhere / "nowhere").exists()


@pytest.mark.parametrize("what", [".hydra/config.yaml", "report.json"])
@pytest.mark.parametrize("kind", ["text", "binary", "pipe", "folder", "dangling"])
def test_the_end_of_a_sweep_waits_for_nothing_odd(
    tmp_path: Path, make_report: Make, what: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(started(tmp_path / "good") / "report.json", make_report())
    foreign(started(tmp_path / "bad") / what, kind, tmp_path)
    with contextlib.suppress(SystemExit):
        conclude(tmp_path)
    assert (tmp_path / "report" / "index.html").is_file()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("sparsity", ["[a]", "{a: 1}", "a", "null", "[]", "[[1]]", "0.5"])
def test_settings_that_are_none_say_that_a_run_did_not_end(tmp_path: Path, sparsity: str) -> None:
    (started(tmp_path / "a") / ".hydra" / "config.yaml").write_text(f"sparsity: {sparsity}")
    assert "did not end" in failures(tmp_path)["a"]


def test_a_report_that_cannot_be_written_is_one_line(
    tmp_path: Path, make_report: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(started(tmp_path / "good") / "report.json", make_report())
    (tmp_path / "report").write_text("mine")
    conclude(tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"no report of the sweep: {tmp_path / 'report'}: no folder, where a report's folder is to be; move it away, or "
        "choose another folder with --out"
    ]


def test_a_full_disk_is_one_line_too(
    tmp_path: Path, make_report: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(started(tmp_path / "good") / "report.json", make_report())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    conclude(tmp_path)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"no report of the sweep: {tmp_path / 'report' / 'written.json'}: could not be written")


def test_a_second_process_that_was_turned_away_is_no_failure_of_the_run(tmp_path: Path, make_report: Make) -> None:
    """Two sweeps of one folder: the one that found the run locked fails, the run goes on and ends well."""
    run = started(tmp_path / "seed=1")
    keep_error(run, "another process is at work", ValueError("another process is at work"))
    write_json(run / "report.json", make_report())
    utime(run / ERROR, (1, 1))
    assert failures(tmp_path) == {}
    utime(run / "report.json", (0, 0))  # an older report, of other settings: this time it failed
    assert failures(tmp_path) == {"seed=1": "another process is at work"}


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """What was handed to W&B, which fails."""
    found: list[tuple[Path, Path]] = []

    def broken(self: object, folder: Path, report: Path) -> None:
        found.append((folder, report))
        raise ConnectionError("no route to host")

    monkeypatch.setattr("stun_exp.tracker.wandb.WandB.track_sweep", broken)
    return found


@pytest.mark.parametrize("dry_run", [False, True])
def test_the_report_goes_to_the_tracker_which_may_fail(
    tmp_path: Path,
    make_report: Make,
    tracked: list[tuple[Path, Path]],
    capsys: pytest.CaptureFixture[str],
    dry_run: bool,
) -> None:
    config = config_of(tmp_path, "WandB", dry_run, project="test", group=None, mode="offline")
    SweepEnd().on_multirun_start(config)
    write_json(started(tmp_path / "sparsity=0.4") / "report.json", make_report())
    SweepEnd().on_multirun_end(config)
    assert tracked == ([] if dry_run else [(tmp_path, tmp_path / "report")])
    assert ("no route to host" in capsys.readouterr().err) is not dry_run
    SweepEnd().on_multirun_start(config_of(tmp_path))  # as the next sweep of a process
    conclude(tmp_path)
    assert len(tracked) == (not dry_run)


def test_a_run_of_several_sparsities_is_done_when_each_has_its_report(tmp_path: Path, make_report: Make) -> None:
    run = started(tmp_path / "sparsity=[0.4,0.5]")
    (run / ".hydra" / "config.yaml").write_text("{dry_run: false, sparsity: [0.4, 0.5]}")
    for sparsity in (0.4, 0.5):
        assert "did not end" in failures(tmp_path)["sparsity=[0.4,0.5]"]
        (run / f"sparsity={sparsity}").mkdir()
        write_json(run / f"sparsity={sparsity}" / "report.json", make_report())
    assert failures(tmp_path) == {}


def test_a_cause_that_runs_share_is_told_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        keep_error(started(tmp_path / name), "no data", ValueError())
    keep_error(started(tmp_path / "c"), "no room", ValueError())
    with pytest.raises(SystemExit, match="1"):
        conclude(tmp_path)
    assert capsys.readouterr().err.splitlines()[1:] == ["  a: no data", "  b: the same", "  c: no room"]


def test_a_dry_run_that_is_refused_ends_the_sweep_with_1(tmp_path: Path) -> None:
    run = started(tmp_path / "a")
    (run / ".hydra" / "config.yaml").write_text("dry_run: true")
    end = OmegaConf.create({"dry_run": True, "hydra": {"sweep": {"dir": str(tmp_path)}}})
    SweepEnd().on_multirun_end(end)
    keep_error(run, "no data", ValueError())
    with pytest.raises(SystemExit, match="1"):
        SweepEnd().on_multirun_end(end)
