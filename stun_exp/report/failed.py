"""Runs that were started and have no report: which, and why."""

import traceback
from pathlib import Path
from typing import Any

import yaml

from stun_exp.config import folders

ERROR = "error.txt"
"""In a run's folder: why it failed, in one line, and where."""


def keep_error(folder: Path, told: str, error: BaseException) -> None:
    """Leaves in a run's folder why it failed."""
    (folder / ERROR).write_text(told + "\n\n" + "".join(traceback.format_exception(error)))


def failures(folder: Path) -> dict[str, str]:
    """The runs in a folder that failed, or did not come to their end, by their own folders, and why."""
    failed = {}
    for started in sorted(folder.rglob(".hydra")):
        run, error = started.parent, started.parent / ERROR
        reports = _reports(run)
        # A second process that found the run locked has failed, the run has not.
        since = error.stat().st_mtime if error.exists() else float("-inf")
        if all(report.exists() and report.stat().st_mtime > since for report in reports):
            continue
        why = (
            error.read_text().partition("\n")[0]
            if error.exists()
            else "did not end; it was killed, or is still running"
        )
        failed[str(run.relative_to(folder))] = why
    return failed


def _reports(run: Path) -> list[Path]:
    """Where they are, or are to be; none of a dry run."""
    one = run / "report.json"
    if one.exists():
        return [one]
    settings = _settings(run / ".hydra" / "config.yaml")
    return (
        [] if settings.get("dry_run") else [place / one.name for place in folders(settings.get("sparsity", 0.0), run)]
    )


def _settings(config: Path) -> dict[str, Any]:
    """A run's; nothing if it was killed before it had written them all."""
    try:
        found = yaml.safe_load(config.read_text())
    except (FileNotFoundError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
