"""No tracker: what lies on disk is all there is."""

from pathlib import Path

from stun_exp.config.component import Component


class NoTracker(Component):
    """Logs nowhere."""

    def track(self, out: Path, sweep: str | None) -> None:
        return None

    def track_sweep(self, folder: Path, report: Path) -> None:
        return None
