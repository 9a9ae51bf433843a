"""The end of a sweep, from its folder alone: the report, and what failed and why."""

from collections.abc import Callable
from os import utime
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from stun_exp.report.failed import ERROR, failures, keep_error
from stun_exp.report.ledger import write_json
from stun_exp.report.sweep import SweepEnd, conclude

Make = Callable[..., dict[str, Any]]


def config_of(folder: Path, tracker: str = "NoTracker", dry_run: bool = False, **settings: Any) -> DictConfig:
    """What Hydra hands to its callbacks, as far as it is looked at."""
    trackers = {"_target_": f"stun_exp.tracking.{tracker}", **settings}
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


def test_a_new_start_forgets_earlier_failures(tmp_path: Path) -> None:
    keep_error(started(tmp_path / "seed=1"), "no room", OSError("no room"))
    callback = SweepEnd()
    callback.on_multirun_start(config_of(tmp_path))
    assert not (tmp_path / "seed=1" / ERROR).exists()
    assert SweepEnd.folder == tmp_path
    SweepEnd.folder = None


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

    monkeypatch.setattr("stun_exp.tracking.WandB.track_sweep", broken)
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
