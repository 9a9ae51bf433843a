"""Differences between methods seed by seed, on the same calibration text."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import mean, stdev

from stun_exp.report.data.metrics import headlines
from stun_exp.report.data.points import Measured
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.tables.results import column_names, figure_cell
from stun_exp.report.tables.table import Cell, ResultsTable


def differences_table(reports: Sequence[RunReport], reference: str) -> ResultsTable:
    """One row a method: its figures minus those of `reference` on the same calibration text, mean over seeds ± error.

    Raises:
        ValueError: The reference is not among the reports, or shares no seed with a method, or two runs have one name
            and seed.
    """
    methods = _by_method(reports)
    if again := _ambiguous(reports):
        raise ValueError(f"two runs are called {again[0]!r} and have seed {again[1]}; tell them apart by `name`")
    if reference not in methods:
        raise ValueError(f"no run is called {reference!r}; there are {', '.join(methods)}")
    figures = headlines(reports)
    rows = []
    for name, by_seed in methods.items():
        shared = sorted(by_seed.keys() & methods[reference].keys())
        if not shared:
            raise ValueError(f"{name} and {reference} have no seed in common")
        if name != reference:
            pairs = [(by_seed[seed], methods[reference][seed]) for seed in shared]
            cells = [_difference(key, [_value(a, key) - _value(b, key) for a, b in pairs]) for key in figures]
            rows.append([Cell(name), Cell(str(len(shared)), len(shared)), *cells])
    return ResultsTable([f"method minus {reference}", "seeds", *column_names(figures)], rows)


def _by_method(reports: Sequence[RunReport]) -> Mapping[str, Mapping[int, RunReport]]:
    methods: dict[str, dict[int, RunReport]] = {}
    for report in reports:
        methods.setdefault(report["name"], {})[report["seed"]] = report
    return methods


def _ambiguous(reports: Sequence[RunReport]) -> tuple[str, int] | None:
    """A name and seed that two runs have."""
    runs = [(report["name"], report["seed"]) for report in reports]
    return next((run for run in runs if runs.count(run) > 1), None)


def _value(report: RunReport, key: str) -> float:
    return float(report["metrics"][key]["value"])


def _difference(key: str, values: Sequence[float]) -> Cell:
    error = stdev(values) / sqrt(len(values)) if len(values) > 1 else None
    return figure_cell(key, Measured(mean(values), error, error), "+")
