"""What a tracker is. What lies on disk is the truth.

It reads the files that a run or a sweep has left, so it can fail, or come later, and nothing is lost.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Tracker(Protocol):
    """Where runs and sweeps are also logged."""

    def track(self, out: Path, sweep: str | None) -> None:
        """Logs the finished run in a folder, which may be part of a sweep of the given name."""
        ...

    def track_sweep(self, folder: Path, report: Path) -> None:
        """Logs the report of the sweep in a folder, which is on disk."""
        ...


@contextmanager
def harmless(results: Path) -> Iterator[None]:
    """Makes a warning of whatever fails in the block: the results are in their folder already."""
    try:
        yield
    except Exception as error:
        from stun_exp.utils.progress import console

        text = f"warning: the tracker failed ({type(error).__name__}: {error}); the results are in {results}"
        console.print(text, style="yellow", markup=False)
