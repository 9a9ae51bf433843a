"""What several calibration seeds say together: means with standard errors, and differences seed by seed."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

from stun_exp.report.tables import ResultsTable, column_names, headlines, passes_text, scale_and_digits

Reports = Sequence[dict[str, Any]]


def seeds_table(reports: Reports) -> ResultsTable | None:
    """One row a method: the mean over its seeds ± its standard error (sd / sqrt n); None if no method has two seeds.

    The error is that of the choice of calibration text alone; a method that sees no text has none. The benchmarks' own
    errors, from their finite number of items, are in the table of runs. None too if two runs have one name and seed, so
    that the name does not tell methods apart.
    """
    methods = _by_method(reports)
    if all(len(by_seed) < 2 for by_seed in methods.values()) or _ambiguous(reports):
        return None
    figures = headlines(reports)
    rows = []
    for name, by_seed in methods.items():
        runs = list(by_seed.values())
        costs = [run["cost"]["experts"] for run in runs]
        rows.append(
            [
                name,
                str(len(runs)),
                f"{100 * mean(run['experts']['ratio'] for run in runs):.1f} %",
                f"{100 * mean(run['sparsity']['achieved'] for run in runs):.2f} %",
                *(_mean_error(key, [_value(run, key) for run in runs]) for key in figures),
                passes_text(mean(cost["forward_passes"] for cost in costs)),
                f"{mean(cost['wall_seconds'] for cost in costs):.1f}",
            ]
        )
    cost = ["passes", "choosing (s)"]
    return ResultsTable(["method", "seeds", "experts removed", "total sparsity", *column_names(figures), *cost], rows)


def differences_table(reports: Reports, reference: str) -> ResultsTable:
    """One row a method: its figures minus those of `reference` on the same calibration text, mean over seeds ± error.

    ValueError if the reference is not among the reports, or shares no seed with a method, or if two runs have one name
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
            cells = [_mean_error(key, [_value(a, key) - _value(b, key) for a, b in pairs], "+") for key in figures]
            rows.append([name, str(len(shared)), *cells])
    return ResultsTable([f"method minus {reference}", "seeds", *column_names(figures)], rows)


def _by_method(reports: Reports) -> Mapping[str, Mapping[int, dict[str, Any]]]:
    methods: dict[str, dict[int, dict[str, Any]]] = {}
    for report in reports:
        methods.setdefault(report["name"], {})[report["seed"]] = report
    return methods


def _ambiguous(reports: Reports) -> tuple[str, int] | None:
    """A name and seed that two runs have."""
    runs = [(report["name"], report["seed"]) for report in reports]
    return next((run for run in runs if runs.count(run) > 1), None)


def _value(report: dict[str, Any], key: str) -> float:
    return float(report["metrics"][key]["value"])


def _mean_error(key: str, values: Sequence[float], sign: str = "") -> str:
    scale, digits = scale_and_digits(key)
    error = f" ± {scale * stdev(values) / sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * mean(values):{sign}.{digits}f}{error}"
