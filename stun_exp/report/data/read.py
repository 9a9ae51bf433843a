"""Reports as runs and sweeps left them on disk: found, checked, read."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.data.schema import why_unusable
from stun_exp.utils.json_files import find, read_json, with_numbers


class ReportedRun(NamedTuple):
    """One run's report, and where it was found."""

    report: RunReport
    where: str
    folder: Path | None
    """The run's own, with its samples; None for a report from a list of them."""


class FoundRuns(NamedTuple):
    """The runs in some places, and what was passed over, a line each."""

    runs: list[ReportedRun]
    skipped: list[str]


def read_runs(places: Sequence[Path]) -> FoundRuns:
    """The runs in sweep or run folders, at any depth, or in .json files that hold a list of reports.

    Returns:
        Those with lower numbers in their names first. What cannot be used is skipped and named: what is no JSON, and
        reports that are damaged or of another schema.

    Raises:
        FileNotFoundError: A place is not there.
        ValueError: No report is left.
    """
    runs: dict[tuple[Path, int], ReportedRun] = {}  # a folder may be given twice, or inside another
    skipped: list[str] = []
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such folder or file")
        for file in sorted(find(place, "report.json"), key=_natural) if place.is_dir() else [place]:
            try:
                content = read_json(file)
            except (ValueError, OSError) as error:  # ValueError: no JSON, or no UTF-8
                why = error.strerror if isinstance(error, OSError) else str(error)
                skipped.append(f"{file}: cannot be read ({why})")
                continue
            for number, run in enumerate(_runs(content, file)):
                if why := why_unusable(run.report):
                    skipped.append(f"{run.where}: {why}")
                else:
                    numbered = run._replace(report=with_numbers(run.report))
                    runs.setdefault((file.resolve(), number), numbered)
    if not runs:
        passed_over = "".join(f"\n  {line}" for line in skipped)
        raise ValueError(f"no report to read in {', '.join(map(str, places))}{passed_over}")
    return FoundRuns(list(runs.values()), skipped)


def _runs(content: Any, file: Path) -> Iterator[ReportedRun]:
    if isinstance(content, list):
        for number, report in enumerate(content):
            yield ReportedRun(report, f"{file}[{number}]", None)
    else:
        yield ReportedRun(content, str(file.parent), file.parent)


def _natural(file: Path) -> list[tuple[float, str]]:
    """Numbers by size, text by letters: job 10 comes after job 2."""
    return [(float(part), "") if part[0].isdigit() else (0, part) for part in re.findall(r"\d+|\D+", str(file))]
