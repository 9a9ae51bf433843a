"""Tables from report.json files alone: what a table is, and the one of results."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from math import isclose, isfinite
from statistics import mean
from typing import Any

from stun_exp.report.data.metrics import chance, headlines, scale_and_digits
from stun_exp.report.data.points import Measured, Point, points
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.tables.contests import LEVEL, Contest, PValues, contests
from stun_exp.report.tables.table import Cell, ResultsTable

COSTS = ("calibration passes", "selection (s)", "peak GiB", "total (s)")
DAMAGE = {
    "reconstruction error": ("reconstruction_error", 1.0, "{:.3f}"),
    "gate mass moved": ("gate_mass_moved", 100.0, "{:.1f} %"),
}
"""Column -> what it is called in the report, its factor and its form."""
CHARGED = (
    "Seconds are charged: those of the run itself, and what each result that it took from the cache took when it was "
    "computed."
)
EXPERTS, PARTS, TOTAL = "experts removed", "parts removed", "total sparsity"
LARGEST_PLAIN = 1e4
"""Of perplexities: beyond it the order of magnitude is all that says anything."""


def results_table(reports: Sequence[RunReport], p_values: PValues | None = None) -> ResultsTable:
    """A row for each point: means over its seeds, accuracies in percent, perplexities as they are.

    Bold, for each benchmark, among points of one sparsity: the best, and what is within noise of it (`contests`).

    `skipped`, where any run skips: share of the experts routed to for the benchmarks' tokens that were not run. What
    the expert stage costs the layers, where that was measured. What the selection of experts, or of parts of a dense
    model, cost: `calibration passes`
    of the whole model over the calibration tokens, where a layer that runs every expert on every token counts
    num_experts / top_k; and seconds. The largest peak of memory before the evaluation, the device's where there is one.
    `total (s)` is the whole run's. All seconds are charged ones, so that methods are compared, and not what lay in the
    cache.
    """
    found, figures = points(reports), headlines(reports)
    settings = list(dict.fromkeys(name for point in found for name in point.settings))
    held = contests(found, list(figures), p_values or {})
    bold = {(contest.key, id(point)) for contest in held for point in contest.bold}
    several = any(len(point.reports) > 1 for point in found)
    skipping = any(report.get("skipping") for report in reports)
    damage = [name for name in DAMAGE if any(_known(point, name) for point in found)]
    first_stages = _first_stages(reports)
    keys = [*settings, *["seeds"] * several, *first_stages, TOTAL]
    rows = [
        [
            Cell(point.name),
            *(Cell(point.settings.get(name, "-")) for name in settings),
            *[_number(len(point.reports), "{:.0f}")] * several,
            *_pruned(point, first_stages),
            *[_skipped(point)] * skipping,
            *(figure_cell(key, point.measured(key), bold=(key, id(point)) in bold) for key in figures),
            *(_damage(point, name) for name in damage),
            *_costs(point),
        ]
        for point in found
    ]
    missed = any(row[len(keys)].text != f"{100 * p.sparsity:.2f} %" for row, p in zip(rows, found, strict=True))
    return ResultsTable(
        ["method", *keys, *["skipped"] * skipping, *column_names(figures), *damage, *COSTS],
        rows,
        tuple(_notes(reports, found, figures, held)),
        keys=frozenset(keys),
        folded=frozenset([*damage, *COSTS]),
        groups=tuple(_group(point, missed) for point in found),
        headed=frozenset() if missed else frozenset([TOTAL]),
    )


def column_names(figures: Mapping[str, str]) -> list[str]:
    """Headings of the headline metrics."""
    return [f"{task} ({key.partition('/')[2].split(',')[0]})" for key, task in figures.items()]


def figure_cell(key: str, measured: Measured | None, sign: str = "", bold: bool = False) -> Cell:
    """The metric `key`, as it is shown, with its standard error where it has one."""
    if measured is None:
        return Cell("-")
    scale, digits = scale_and_digits(key)
    value, error = scale * measured.value, None if measured.error is None else scale * measured.error
    if not isfinite(value):
        return Cell("nan" if value != value else f"{value:{sign}}", value)
    form = f".{digits}f" if abs(value) <= LARGEST_PLAIN else ".1e"
    return Cell(f"{value:{sign}{form}}" + ("" if error is None else f" ± {error:{form}}"), value, error, bold)


def passes_text(passes: float) -> str:
    """Forward passes, with a decimal where they are not whole."""
    return f"{passes:.0f}" if isclose(passes, round(passes)) else f"{passes:.1f}"


def _group(point: Point, missed: bool) -> str:
    """The heading of the points that compete with this one."""
    return "" if point.is_unpruned else f"Total sparsity {100 * point.sparsity:g} %" + " requested" * missed


def _first_stages(reports: Sequence[RunReport]) -> list[str]:
    """The columns for what the first stages take: experts of mixtures, parts of dense models."""
    has_experts = any(report["experts"].get("before") for report in reports)
    has_parts = any(report.get("structure") for report in reports)
    return [EXPERTS] * (has_experts or not has_parts) + [PARTS] * has_parts


def _pruned(point: Point, first_stages: Sequence[str]) -> list[Cell]:
    """Share of the experts, of the weights in other parts, and of all weights that is gone."""
    shares = {
        EXPERTS: [report["experts"]["ratio"] for report in point.reports],
        PARTS: [(report.get("structure") or {}).get("share_removed", 0.0) for report in point.reports],
    }
    first = [0.0 if point.is_baseline else mean(shares[name]) for name in first_stages]
    weights = 0.0 if point.is_baseline else mean(report["sparsity"]["achieved"] for report in point.reports)
    return [*(_number(100 * share, "{:.1f} %") for share in first), _number(100 * weights, "{:.2f} %")]


def _skipped(point: Point) -> Cell:
    shares = [(report.get("skipping") or {}).get("evaluation") for report in point.reports]
    known = [share for share in shares if share is not None]
    return _number(100 * mean(known), "{:.1f} %") if known and not point.is_baseline else Cell("-")


def _known(point: Point, column: str) -> list[float]:
    """The values of a figure of the expert stage, of the runs that have it."""
    if point.is_baseline:
        return []
    values = [(report.get("expert_stage") or {}).get(DAMAGE[column][0]) for report in point.reports]
    return [float(value) for value in values if value is not None]


def _damage(point: Point, column: str) -> Cell:
    known, (_, factor, form) = _known(point, column), DAMAGE[column]
    return _number(factor * mean(known), form) if known else Cell("-")


def _costs(point: Point) -> list[Cell]:
    """Means over the seeds, and the largest peak."""
    if point.is_baseline:
        return [Cell("-")] * len(COSTS)
    costs = [report["cost"] for report in point.reports]
    selecting = [[cost[stage] for stage in ("structure", "experts") if stage in cost] for cost in costs]
    passes = mean(sum(stage["forward_passes"] for stage in stages) for stages in selecting)
    return [
        Cell(passes_text(passes), passes),
        _number(mean(sum(stage["charged_seconds"] for stage in stages) for stages in selecting), "{:.1f}"),
        _number(max(_peak_gib(cost) for cost in costs), "{:.2f}"),
        _number(mean(sum(stage["charged_seconds"] for stage in cost.values()) for cost in costs), "{:.0f}"),
    ]


def _peak_gib(cost: dict[str, dict[str, Any]]) -> float:
    stages = (stage for stage in takewhile(lambda stage: stage != "evaluate", cost) if stage != "damage")
    peaks = [(cost[stage]["peak_device_gib"], cost[stage]["peak_host_gib"]) for stage in stages]
    return max(float(host if device is None else device) for device, host in peaks)


def _number(value: float, form: str) -> Cell:
    return Cell(form.format(value), value)


def _notes(
    reports: Sequence[RunReport], found: Sequence[Point], figures: Mapping[str, str], held: Sequence[Contest]
) -> Iterator[str]:
    if any(len(point.reports) > 1 for point in found):
        yield (
            "±: of several seeds, the standard error over them, which is that of the calibration text alone; of one "
            "seed, the benchmark's own, over its items."
        )
    levels = {task: level for key, task in figures.items() if (level := chance(reports[0], key)) is not None}
    if levels:
        named = (
            f"{', '.join(task for task, of_task in levels.items() if of_task == level)} {100 * level:g} %"
            for level in dict.fromkeys(levels.values())
        )
        yield f"Chance level: {'; '.join(named)}." + " What is not a standard error above it is not bold." * bool(held)
    if any(contest.bold for contest in held):
        yield _what_is_bold(held)
    if not all(point.is_baseline for point in found):
        yield CHARGED
    if any(point.is_baseline for point in found):
        measured = [report["baseline"]["metrics"] for report in reports if report.get("baseline")]
        first = "" if measured.count(measured[0]) == len(measured) else "; not all runs have the same figures for it"
        yield f"The row unpruned is the model as it was, measured beside the first run{first}."


def _what_is_bold(held: Sequence[Contest]) -> str:
    told = ["the best"]
    if any(contest.near for contest in held):
        told.append(f"what its paired test on the same items does not tell from it (p at least {LEVEL})")
    if any(contest.close for contest in held):
        untested = ", where there is no test," if len(told) > 1 else ""
        told.append(f"what{untested} lies within one standard error of the difference from it (over items and seeds)")
    return f"Bold, among rows of one sparsity: {' and '.join(told)}."
