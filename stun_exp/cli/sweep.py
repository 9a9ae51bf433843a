"""What a sweep says when it ends: one table of all its runs, and which of them failed and why.

Workers of a sweep share nothing but its folder, so all of it is read from there.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig

from stun_exp.report.data.failures import failures, refused
from stun_exp.tracker.none import NoTracker
from stun_exp.tracker.protocol import harmless


class SweepEnd(Callback):
    """Ends a sweep with its tables and a list of what failed; the process then exits with 1 if anything did."""

    folder: Path | None = None
    """Of the sweep that is going on in this process."""
    tracker: Any = NoTracker()
    """Of that sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        SweepEnd.folder = folder
        SweepEnd.tracker = instantiate(config.tracker)  # its settings were checked with the command line

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        if config.dry_run:  # which leaves nothing
            _end_with(refused(folder))
        else:
            conclude(folder)


def conclude(folder: Path) -> None:
    """Prints the tables of a sweep that has ended and writes them beside its runs; exits with 1 if a run failed."""
    SweepEnd.folder = None
    reports, failed = [file for file in folder.rglob("report.json") if file.is_file()], failures(folder)
    if reports:
        from stun_exp.report.command import default_out, write_report

        page = default_out(folder) / "index.html"
        try:
            if failed or not page.is_file() or max(file.stat().st_mtime for file in reports) > page.stat().st_mtime:
                write_report([folder], page.parent)
            print(f"report: {page}")
            with harmless(page.parent):
                SweepEnd.tracker.track_sweep(folder, page.parent)
        except (ValueError, OSError) as error:  # the runs are there all the same
            sys.stdout.flush()
            print(f"no report of the sweep: {error}", file=sys.stderr)
    _end_with(failed)


def _end_with(failed: Mapping[str, str]) -> None:
    """Exits with 1, and says what failed, if anything did."""
    if failed:
        sys.stdout.flush()
        print(f"{len(failed)} of the sweep's runs failed; the same command tries them again:", file=sys.stderr)
        print(*_once(failed), sep="\n", file=sys.stderr)
        sys.exit(1)


def _once(failed: Mapping[str, str]) -> Iterator[str]:
    """A line for each run that failed; a cause that several share is told with the first of them."""
    said: dict[str, str] = {}
    for name, why in failed.items():
        first = said.setdefault(why, name)
        yield f"  {name}: {why if first == name else 'the same'}"
