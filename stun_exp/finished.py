"""Whether a run's folder holds a finished run, and whether of these settings."""

import json
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stun_exp.report.schema import SCHEMA

WITHOUT_EFFECT = ("dry_run", "resume", "stream", "cache", "tracker")
"""Settings that cannot change what a run leaves."""


def fingerprint_of(made_of: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The sha256 of all that a run's results depend on: what its weights are made of, and every other setting.

    Of the code it is the version alone: a method that is added does not undo the runs of others. The commit is in each
    report.
    """
    settings = {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    text = json.dumps([made_of, settings, version("lm-eval")], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def is_finished(out: Path, fingerprint: str, keep: bool) -> bool:
    """Whether the folder holds the report of such a run and, if that is to be kept, its checkpoint."""
    report = _report(out)
    kept = not keep or (out / "checkpoint").is_dir()
    return report.get("schema") == SCHEMA and report.get("fingerprint") == fingerprint and kept


def is_over(out: Path) -> bool:
    """Whether the folder is a finished run's; ValueError if it keeps that run's checkpoint."""
    over = (out / "report.json").exists()
    if over and (out / "checkpoint").exists():
        raise ValueError(f"hydra.run.dir={out} keeps a finished run's checkpoint; delete it or choose another folder")
    return over


def _report(out: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads((out / "report.json").read_text())
    except (FileNotFoundError, ValueError):  # written whole or not at all: what is no JSON is not ours
        return {}
    return report
