"""Runs that were started and have no report: which, and why."""

import sys
import traceback
from pathlib import Path
from typing import Any

import yaml

from stun_exp.config.settings import folders
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import read_regular

ERROR = "error.txt"
"""In a run's folder: why it failed, in one line behind the mark, and where."""
ERROR_MARK = b"stun: "
"""Begins each such file of ours; another is not read, not written over and not removed."""


def keep_error(folder: Path, told: str, error: BaseException) -> None:
    """Leaves in a run's folder why it failed, or says that it cannot: a file of somebody's is in the way."""
    file = folder / ERROR
    if (file.is_symlink() or file.exists()) and not _is_ours(file):
        print(f"{file}: left as it is, no run has written it; so it does not say why this one failed", file=sys.stderr)
        return
    text = f"{told}\n\n{''.join(traceback.format_exception(error))}"
    try:
        write_file(file, [ERROR_MARK + text.encode(errors="backslashreplace")])
    except OSError as failure:  # to raise it would stop other runs of the sweep
        print(f"error: {failure}", file=sys.stderr)


def forget_error(folder: Path) -> None:
    """Removes what an earlier start of the run in a folder has left there of its failure."""
    if _is_ours(folder / ERROR):
        (folder / ERROR).unlink()


def failures(folder: Path) -> dict[str, str]:
    """The runs in a folder that failed, or did not come to their end, by their own folders, and why."""
    failed = {}
    for started in sorted(folder.rglob(".hydra")):
        run, error = started.parent, started.parent / ERROR
        reports = _reports(run)
        told = _is_ours(error)
        # A second process that found the run locked has failed, the run has not.
        since = error.stat().st_mtime if told else float("-inf")
        if all(report.is_file() and report.stat().st_mtime > since for report in reports):
            continue
        failed[str(run.relative_to(folder))] = (
            _why(error) if told else "did not end; it was killed, or is still running"
        )
    return failed


def refused(folder: Path) -> dict[str, str]:
    """The dry runs in a folder that were refused, by their own folders, and why."""
    runs = [started.parent for started in sorted(folder.rglob(".hydra"))]
    dry = [run for run in runs if _is_ours(run / ERROR) and _settings(run / ".hydra" / "config.yaml").get("dry_run")]
    return {str(run.relative_to(folder)): _why(run / ERROR) for run in dry}


def _is_ours(file: Path) -> bool:
    """Whether a run has written it."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        with file.open("rb") as content:
            return content.read(len(ERROR_MARK)) == ERROR_MARK
    except PermissionError:
        return False


def _why(error: Path) -> str:
    return read_regular(error).decode(errors="replace").removeprefix(ERROR_MARK.decode()).partition("\n")[0]


def _reports(run: Path) -> list[Path]:
    """Where they are, or are to be; none of a dry run."""
    one = run / "report.json"
    if one.is_file():
        return [one]
    settings = _settings(run / ".hydra" / "config.yaml")
    if settings.get("dry_run"):
        return []
    sparsity = settings.get("sparsity")
    several = isinstance(sparsity, list) and all(isinstance(share, int | float) for share in sparsity)
    return [place / one.name for place in folders(sparsity if several and sparsity else 0.0, run)]


def _settings(config: Path) -> dict[str, Any]:
    """A run's; nothing if it was killed before it had written them all, or if they cannot be read."""
    try:
        found = yaml.safe_load(read_regular(config).decode())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
