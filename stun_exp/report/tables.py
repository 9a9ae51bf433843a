"""Tables from report.json files alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table


@dataclass(frozen=True)
class ResultsTable:
    """One row a run: method, expert ratio, measured sparsity, each benchmark with its standard error, seconds."""

    columns: list[str]
    rows: list[list[str]]

    def show(self) -> None:
        """Prints it on standard output, in full width where that is not a terminal."""
        console = Console()
        if not console.is_terminal:
            console.width = 200
        table = Table(*(Column(name, overflow="fold") for name in self.columns), box=SIMPLE_HEAD, pad_edge=False)
        for row in self.rows:
            table.add_row(*map(escape, row))  # a name may hold brackets
        console.print(table)

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def results_table(reports: Sequence[dict[str, Any]]) -> ResultsTable:
    """The table of several runs, in the order given. Accuracies are in percent, perplexities as they are."""
    figures = headlines(reports)
    names = [f"{task} ({key.partition('/')[2].split(',')[0]})" for key, task in figures.items()]
    rows = [
        [
            report["name"],
            f"{100 * report['experts']['ratio']:.1f} %",
            f"{100 * report['sparsity']['achieved']:.2f} %",
            *(_figure(key, report["metrics"].get(key)) for key in figures),
            f"{sum(cost['wall_seconds'] for cost in report['cost'].values()):.0f}",
        ]
        for report in reports
    ]
    return ResultsTable(["method", "experts removed", "total sparsity", *names, "seconds"], rows)


def headlines(reports: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Key of each benchmark's headline metric -> the benchmark, over all runs."""
    keys: dict[str, str] = {}
    for report in reports:
        for benchmark in report["settings"]["eval"].get("benchmarks", {}).values():
            keys.setdefault(f"{benchmark['task']}/{benchmark['metric']}", benchmark["task"])
    return keys


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """The reports of a sweep's runs, in the order of their numbers."""
    files = sorted(folder.glob("*/report.json"), key=lambda file: (len(file.parent.name), file.parent.name))
    return [json.loads(file.read_text()) for file in files]


def _figure(key: str, metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    scale, digits = (1.0, 3) if "perplexity" in key or "bits" in key else (100.0, 1)
    error = "" if metric["stderr"] is None else f" ± {scale * metric['stderr']:.{digits}f}"
    return f"{scale * metric['value']:.{digits}f}{error}"
