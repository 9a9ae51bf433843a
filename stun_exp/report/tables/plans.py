"""The table of expert plans: which settings gave which, and how far each agrees with the first."""

from collections.abc import Sequence

from stun_exp.report.data.plans import (
    PlannedRun,
    cluster_agreement,
    distance_correlation,
    equal_plans,
    kept_in_common,
)
from stun_exp.report.tables.table import Cell, ResultsTable

MOST_LAYERS = 8
"""Whose numbers of experts are shown one by one."""
MOST_NAMED = 6
"""Rows that a note names before it counts the rest."""
MEASURED = {
    "reconstruction error": ("reconstruction_error", 1.0, ".4f", ""),
    "gate mass moved": ("gate_mass_moved", 100.0, ".1f", " %"),
}
"""Column -> what it is called in the report, its factor, form and unit."""


def plans_table(runs: Sequence[PlannedRun]) -> ResultsTable:
    """A row for each of the settings that decide a plan; the last columns compare its plan with the first row's."""
    several = len({run.names for run in runs}) > 1
    settings = list(dict.fromkeys(name for run in runs for name in run.settings))
    measured = [name for name, (key, *_) in MEASURED.items() if any(run.stage.get(key) is not None for run in runs)]
    columns = ["row", *["method"] * several, *settings, "plan", "clusters", "largest cluster", "experts kept"]
    columns += [*measured, "kept in common", "cluster ARI", "distance correlation"]
    rows = [
        [
            Cell(str(number), number),
            *[Cell(", ".join(run.names))] * several,
            *(Cell(run.settings.get(name, "-")) for name in settings),
            _plan(run, runs[: number - 1]),
            _number(run.stage["num_clusters"], ".0f"),
            _number(run.stage["largest_cluster"], ".0f"),
            Cell(kept_text([layer["kept"] for layer in run.stage["per_layer"]])),
            *(_measured(run, name) for name in measured),
            *_agreement(run, runs[0]),
        ]
        for number, run in enumerate(runs, 1)
    ]
    return ResultsTable(columns, rows, tuple(_notes(runs)))


def equal_plans_note(runs: Sequence[PlannedRun]) -> str:
    """Which rows of a table of results have one plan though their settings differ; "" if none do."""
    found = [_named([run.label for run in equal], " = ") for equal in equal_plans(runs)]
    return f"Equal expert plans: {'; '.join(found)}." if found else ""


def kept_text(counts: Sequence[int]) -> str:
    """Experts kept by each layer: one by one, the range of many."""
    if len(counts) <= MOST_LAYERS:
        return " ".join(map(str, counts))
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}-{max(counts)}"


def _plan(run: PlannedRun, earlier: Sequence[PlannedRun]) -> Cell:
    """The plan's id, and the first row that has the same."""
    same = next((number for number, other in enumerate(earlier, 1) if other.plan_id == run.plan_id), None)
    return Cell(run.plan_id if same is None else f"{run.plan_id} (= row {same})")


def _measured(run: PlannedRun, name: str) -> Cell:
    key, scale, form, unit = MEASURED[name]
    value = run.stage.get(key)
    return Cell("-") if value is None else _number(scale * float(value), form, unit)


def _agreement(run: PlannedRun, first: PlannedRun) -> list[Cell]:
    if run is first:
        return [Cell("-")] * 3
    common, index, order = (
        kept_in_common(first, run),
        cluster_agreement(first, run),
        distance_correlation(first, run),
    )
    return [
        Cell("-") if common is None else _number(100 * common, ".1f", " %"),
        *(Cell("-") if value is None else _number(value, ".3f") for value in (index, order)),
    ]


def _number(value: float, form: str, unit: str = "") -> Cell:
    return Cell(f"{value:{form}}{unit}", value)


def _notes(runs: Sequence[PlannedRun]) -> list[str]:
    counts = [(layer["kept"], layer["num_experts"]) for layer in runs[0].stage["per_layer"]]
    chance = sum(kept * kept / max(experts, 1) for kept, experts in counts) / max(sum(kept for kept, _ in counts), 1)
    notes = [
        "The last columns compare with row 1. Kept in common: of the kept experts, those that both keep; two random "
        f"choices of as many as row 1 keeps would share {100 * chance:.0f} %. Cluster ARI: adjusted Rand index, mean "
        "over layers; 1 for the same clusters, 0 as by chance. Distance correlation: Spearman's, over all pairs of "
        "experts, mean over layers; 1 for the same order of all distances. A dash: a method that does not cluster, or "
        "leaves no distances."
    ]
    if lacking := [run.label for run in runs if run.files is None]:
        notes.append(f"Not compared for want of a plan.json that can be read: {_named(lacking, '; ')}.")
    return notes


def _named(labels: Sequence[str], between: str) -> str:
    more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    return between.join(labels[:MOST_NAMED]) + more
