"""Whether a run's folder holds a finished run, of these settings, and all that it left."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stun_exp.state.artifacts import SCHEMA
from stun_exp.state.code import components, digests

WITHOUT_EFFECT = ("dry_run", "resume", "stream", "cache", "tracker")
"""Settings that cannot change what a run leaves."""
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


def run_code(config: Mapping[str, Any]) -> dict[str, str]:
    """The digest of each module that decided the results of a run with these settings, by its name."""
    deciding = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    return digests(["stun_exp.pipeline.run", *components(deciding)])


def fingerprint_of(made_of: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The sha256 of all that a run's results depend on.

    What its weights are made of, every other setting, and the code: a method that is added does not undo the runs of
    others, and one that was changed undoes its own.
    """
    settings = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    text = json.dumps([made_of, settings, run_code(config), version("lm-eval")], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def is_finished(out: Path, fingerprint: str) -> bool:
    """Whether the folder holds the report of a run with this fingerprint."""
    report = _report(out)
    return report.get("schema") == SCHEMA and report.get("fingerprint") == fingerprint


def kept_files(out: Path, digest: Digest) -> Kept:
    """The files of the checkpoint in a run's folder, as they are now."""
    files = sorted(file for file in (out / "checkpoint").rglob("*") if file.is_file())
    return Kept({file.relative_to(out).as_posix(): KeptFile(file.stat().st_size, digest(file)) for file in files})


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
    if over and (out / "checkpoint").exists():
        raise ValueError(f"hydra.run.dir={out} keeps a finished run's checkpoint; delete it or choose another folder")
    return over


def _report(out: Path) -> dict[str, Any]:
    file = out / "report.json"
    try:
        report = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}
