"""Whether a run's folder holds a finished run, of these settings, and all that it left."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from stun_exp.state.artifacts import CHECKPOINT, JOURNAL, REPORT, SCHEMA
from stun_exp.state.journal import read_records

Digest = Callable[[Path], str]


@dataclass(frozen=True)
class KeptFile:
    """A file of a checkpoint that is kept, as it was when the run ended."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Kept:
    """What is kept of a finished run's checkpoint, by the names of the files in the run's folder."""

    files: dict[str, KeptFile]


def is_finished(out: Path, fingerprint: str) -> bool:
    """Whether the folder holds the report of a run with this fingerprint."""
    report = _report(out)
    return report.get("schema") == SCHEMA and report.get("fingerprint") == fingerprint


def kept_files(out: Path, digest: Digest) -> Kept:
    """The files of the checkpoint in a run's folder, as they are now."""
    files = sorted(file for file in (out / CHECKPOINT).rglob("*") if file.is_file())
    return Kept({file.relative_to(out).as_posix(): KeptFile(file.stat().st_size, digest(file)) for file in files})


def missing_of(out: Path, digest: Digest) -> list[str]:
    """What is missing of what a finished run kept, by name in its folder; ValueError for a file that was changed."""
    records, _ = read_records(out / JOURNAL)
    kept = next((record["value"] for record in reversed(records) if record.get("stage") == "kept"), None)
    return [CHECKPOINT] if kept is None else missing_files(out, TypeAdapter(Kept).validate_python(kept), digest)


def missing_files(out: Path, kept: Kept, digest: Digest) -> list[str]:
    """Those of a finished run's files that are not there any more.

    ValueError for one that is there and is not what the run wrote: it may be somebody's work.
    """
    missing = []
    for name, was in kept.files.items():
        file = out / name
        if not file.is_file():
            missing.append(name)
        elif file.stat().st_size != was.size or digest(file) != was.sha256:
            raise ValueError(
                f"{file}: the run that finished here wrote {was.size:,} bytes, and there are "
                f"{file.stat().st_size:,}, or others; if it is damaged, delete it and the same command makes it again; "
                "if it is yours, choose another folder with hydra.run.dir=DIR"
            )
    return missing


def is_over(out: Path) -> bool:
    """Whether the folder is a finished run's; ValueError if it keeps that run's checkpoint.

    A report that is not whole says nothing: the run goes on from its journal, and writes it again.
    """
    over = bool(_report(out))
    if over and (out / CHECKPOINT).exists():
        raise ValueError(f"hydra.run.dir={out} keeps a finished run's checkpoint; delete it or choose another folder")
    return over


def _report(out: Path) -> dict[str, Any]:
    file = out / REPORT
    try:
        report = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}
