"""Reports as runs and sweeps left them on disk: found, checked, read."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stun_exp.report.points import Report
from stun_exp.report.schema import SCHEMA

NEEDED = frozenset({"name", "seed", "settings", "model", "experts", "sparsity", "metrics", "cost", "provenance"})


class Run(NamedTuple):
    """One run's report, and where it was found."""

    report: Report
    where: str
    folder: Path | None
    """The run's own, with its samples; None for a report from a list of them."""


class Found(NamedTuple):
    """The runs in some places, and what was passed over, a line each."""

    runs: list[Run]
    skipped: list[str]


def read_runs(places: Sequence[Path]) -> Found:
    """The runs in sweep or run folders, at any depth, or in .json files that hold a list of reports.

    Runs with lower numbers in their names come first. What cannot be used is skipped and named: JSON that is damaged,
    reports of another schema. FileNotFoundError for a place that is not there, ValueError if no report is left.
    """
    runs: dict[tuple[Path, int], Run] = {}  # a folder may be given twice, or inside another
    skipped: list[str] = []
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such folder or file")
        for file in sorted(place.rglob("report.json"), key=_natural) if place.is_dir() else [place]:
            try:
                content = json.loads(file.read_text())
            except (ValueError, OSError) as error:  # ValueError: no JSON, or no text
                skipped.append(f"{file}: cannot be read ({str(error) or type(error).__name__})")
                continue
            for number, run in enumerate(_runs(content, file)):
                if why := _unusable(run.report):
                    skipped.append(f"{run.where}: {why}")
                else:
                    runs.setdefault((file.resolve(), number), run)
    if not runs:
        passed_over = "".join(f"\n  {line}" for line in skipped)
        raise ValueError(f"no report to read in {', '.join(map(str, places))}{passed_over}")
    return Found(list(runs.values()), skipped)


def _runs(content: Any, file: Path) -> Iterator[Run]:
    if isinstance(content, list):
        for number, report in enumerate(content):
            yield Run(report, f"{file}[{number}]", None)
    else:
        yield Run(content, str(file.parent), file.parent)


def _unusable(report: Any) -> str | None:
    """Why something is no report that can be read here; None if it is one."""
    if not isinstance(report, dict):
        return "no report"
    if (schema := report.get("schema")) != SCHEMA:
        age = "before schemas were numbered" if schema is None else f"of schema {schema}"
        return f"a report {age}, and this version reads schema {SCHEMA}; run it again"
    if lacking := NEEDED - report.keys():
        return f"damaged, it lacks {', '.join(sorted(lacking))}"
    return None


def _natural(file: Path) -> list[tuple[float, str]]:
    """Numbers by size, text by letters: job 10 comes after job 2."""
    return [(float(part), "") if part[0].isdigit() else (0, part) for part in re.findall(r"\d+|\D+", str(file))]
