"""Published figures beside ours, and whether they agree."""

from collections.abc import Sequence
from math import isfinite, sqrt
from statistics import mean

from stun_exp.report.data.metrics import lower_is_better, scale_and_digits
from stun_exp.report.data.points import Measured, Point, points
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.tables.published_rows import (
    SPARSITY_TOLERANCE,
    PublishedRow,
    has_settings,
    is_of_method,
    is_of_model,
    is_of_pack,
    is_of_toy_version,
    our_metric_keys,
    published_rows,
)
from stun_exp.report.tables.table import Cell, ResultsTable

NOT_COMPARABLE = "not comparable: "
WITHIN = 1.96
"""Standard errors in which a difference is taken for noise: 95 % of a normal distribution."""


def published_table(reports: Sequence[RunReport]) -> ResultsTable | None:
    """A row for each published figure of these runs' methods, on their model or in the toy version of their pack.

    Returns:
        Ours, theirs, the difference, our standard error over items and seeds (theirs is not known), and a verdict:
        within 1.96 standard errors, better, worse, or why the two cannot be compared. Accuracies are in percent. None
        if nothing was published of these runs.
    """
    found = points(reports)
    lines: list[list[Cell]] = []
    remarks, not_run = dict[str, None](), dict[str, None]()
    for row in published_rows():
        of_method = [point for point in found if is_of_method(row, point)]
        near = [point for point in of_method if is_of_model(row, point) or is_of_toy_version(row, point)]
        same = [point for point in near if has_settings(row, point)]
        if not same and any(is_of_pack(row, point) for point in near):
            share = f"{100 * float(row['sparsity']):g} %"
            not_run[f"{row['table']}, {row['model']}, {row['method']}, {share}"] = None
        for point in same:
            lines.append([*_theirs(row), *_ours(row, point)])
            if row["remark"] and row["our_metrics"]:
                remarks[f"{row['paper']}, {row['table']}: {row['remark']}."] = None
    if not lines:
        return None
    columns = ["paper", "table", "model", "method", "sparsity", "benchmark", "published"]
    columns += ["our run", "ours", "difference", "standard error", "verdict"]
    notes = [*_notes(lines), *remarks]
    if not_run:
        notes.append(f"Of the same packs, but without a run of ours: {'; '.join(not_run)}.")
    return ResultsTable(columns, lines, tuple(notes))


def with_verdict(table: ResultsTable) -> ResultsTable:
    """The rows of a comparison that were compared, with a note that counts the others."""
    compared = [row for row in table.cells if not row[-1].text.startswith(NOT_COMPARABLE)]
    others = len(table.cells) - len(compared)
    notes = table.notes if compared else ()
    if others:
        notes += (f"Published figures that cannot be compared with ours: {others}; the report says why.",)
    return ResultsTable(table.columns, compared, notes)


def _measured(row: PublishedRow, point: Point) -> Measured | None:
    """Our figure: of several metrics the mean, with the errors of independent ones; None if one is lacking."""
    found = [point.measured(key) for key in our_metric_keys(row, point)]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    value, noises = mean(one.value for one in known), [one.noise for one in known if one.noise is not None]
    noise = sqrt(sum(noise**2 for noise in noises)) / len(known) if len(noises) == len(known) else None
    return Measured(value, noise, noise)


def _ours(row: PublishedRow, point: Point) -> list[Cell]:
    """Our side of a row, and the verdict."""
    measured, why = _measured(row, point), _hindrances(row, point)
    verdict = NOT_COMPARABLE + "; ".join(why)
    if measured is None:
        return [Cell(point.label), Cell("-"), Cell("-"), Cell("-"), Cell(verdict)]
    key = row["our_metrics"].split()[0]
    scale, _ = scale_and_digits(key)
    value, error = scale * measured.value, None if measured.noise is None else scale * measured.noise
    difference = value - float(row["value"])
    if not why and error is not None:
        better = (difference < 0) == lower_is_better(key)
        verdict = "agrees within noise" if abs(difference) <= WITHIN * error else "better" if better else "worse"
    return [
        Cell(point.label),
        Cell(f"{value:.2f}", value),  # as papers print them
        Cell(f"{difference:+.2f}", difference),
        Cell("-") if error is None else Cell(f"{error:.2f}", error),
        Cell(verdict),
    ]


def _hindrances(row: PublishedRow, point: Point) -> list[str]:
    """Why the two figures cannot be compared."""
    report, measured = point.reports[0], _measured(row, point)
    why = [] if is_of_model(row, point) else ["a toy version, another model"]
    if not row["our_metrics"]:
        return [*why, row["remark"]]
    if (limit := report["settings"]["eval"].get("limit")) is not None:
        why.append(f"eval.limit={limit}")
    if not point.is_unpruned:
        removed, published = report["experts"]["ratio"], row["expert_sparsity"]
        if published and abs(removed - float(published)) > SPARSITY_TOLERANCE:
            why.append(f"{100 * removed:.1f} % of the experts removed and not {100 * float(published):g} %")
        total = report["sparsity"]["achieved"]
        # Where experts make all of it, it is their share that is published, and not that of the weights.
        if published != row["sparsity"] and abs(total - float(row["sparsity"])) > SPARSITY_TOLERANCE:
            why.append(f"total sparsity {100 * total:.1f} %")
    if measured is None:
        return [*why, f"another metric, our run has no {row['our_metrics']}"]
    shots = {str(point.metrics[0][key]["num_fewshot"]) for key in our_metric_keys(row, point)}
    if row["num_fewshot"] and shots != {row["num_fewshot"]}:
        why.append(f"{', '.join(sorted(shots))} shots and not {row['num_fewshot']}")
    if not isfinite(measured.value):
        why.append(f"ours is {measured.value:g}")
    elif measured.noise is None:
        why.append("no standard error")
    elif measured.noise == 0:
        why.append("a standard error of 0, which says nothing")
    return why


def _theirs(row: PublishedRow) -> list[Cell]:
    share, value = 100 * float(row["sparsity"]), float(row["value"])
    mark = "" if row["status"] == "primary" else f" ({row['status']})"
    texts = [row["paper"], row["table"], row["model"], row["method"]]
    return [*map(Cell, texts), Cell(f"{share:g} %", share), Cell(row["task"]), Cell(f"{row['value']}{mark}", value)]


def _notes(lines: Sequence[Sequence[Cell]]) -> list[str]:
    notes = [
        f"Verdict: within {WITHIN} standard errors of ours, over items and seeds; that of the published figure is not "
        "known."
    ]
    if any(cell.text.endswith("(unverified)") for line in lines for cell in line):
        notes.append("Unverified figures are from notes of others on the paper, whose own tables were not seen.")
    return notes
