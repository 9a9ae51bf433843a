"""Tables from report.json files alone."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import isclose
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table


@dataclass(frozen=True)
class ResultsTable:
    """One row a run: method, expert ratio, measured sparsity, each benchmark with its standard error, cost."""

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
    """The table of several runs, in the order given. Accuracies are in percent, perplexities as they are.

    `skipped`, where any run skips: share of the experts chosen for the benchmarks' tokens that were not run. What
    choosing the experts cost: `passes` of the whole model over the calibration tokens, where a layer that runs every
    expert on every token counts num_experts / top_k; wall seconds; and the largest peak of memory before the
    evaluation, the device's where there is one. `seconds` are the whole run's.
    """
    figures = headlines(reports)
    skipping = ["skipped"] if any(report.get("skipping") for report in reports) else []
    rows = [
        [
            report["name"],
            f"{100 * report['experts']['ratio']:.1f} %",
            f"{100 * report['sparsity']['achieved']:.2f} %",
            *(_skipped(report) for _ in skipping),
            *(_figure(key, report["metrics"].get(key)) for key in figures),
            passes_text(report["cost"]["experts"]["forward_passes"]),
            f"{report['cost']['experts']['wall_seconds']:.1f}",
            f"{_peak_gib(report['cost']):.2f}",
            f"{sum(cost['wall_seconds'] for cost in report['cost'].values()):.0f}",
        ]
        for report in reports
    ]
    cost = ["passes", "choosing (s)", "peak GiB", "seconds"]
    return ResultsTable(["method", "experts removed", "total sparsity", *skipping, *column_names(figures), *cost], rows)


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


def scale_and_digits(key: str) -> tuple[float, int]:
    """How a metric is shown: accuracies in percent, perplexities as they are."""
    return (1.0, 3) if "perplexity" in key or "bits" in key else (100.0, 1)


def column_names(figures: dict[str, str]) -> list[str]:
    """Headings of the headline metrics."""
    return [f"{task} ({key.partition('/')[2].split(',')[0]})" for key, task in figures.items()]


def _figure(key: str, metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    scale, digits = scale_and_digits(key)
    error = "" if metric["stderr"] is None else f" ± {scale * metric['stderr']:.{digits}f}"
    return f"{scale * metric['value']:.{digits}f}{error}"


def _skipped(report: dict[str, Any]) -> str:
    share = (report.get("skipping") or {}).get("evaluation")
    return "-" if share is None else f"{100 * share:.1f} %"


def passes_text(passes: float) -> str:
    """Forward passes, with a decimal where they are not whole."""
    return f"{passes:.0f}" if isclose(passes, round(passes)) else f"{passes:.1f}"


def _peak_gib(cost: dict[str, dict[str, Any]]) -> float:
    stages = takewhile(lambda stage: stage != "evaluate", cost)
    peaks = [(cost[stage]["peak_device_gib"], cost[stage]["peak_host_gib"]) for stage in stages]
    return max(float(host if device is None else device) for device, host in peaks)
