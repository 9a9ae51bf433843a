"""Published figures beside ours, and whether they agree."""

from collections import Counter
from collections.abc import Sequence
from math import isfinite, sqrt
from statistics import mean

from stun_exp.report.data.metrics import lower_is_better, scale_and_digits
from stun_exp.report.data.points import Measured, Point, points
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.tables.model_cards import departures, other_expert_ratio
from stun_exp.report.tables.published_rows import (
    CONTRADICTORY,
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

AGREES, NOT_COMPARABLE, TOY = "agrees within noise", "not comparable", "a toy version, another model"
SOURCE = ("paper", "table", "model")
KEYS = frozenset(["verdict", *SOURCE, "method", "sparsity", "our run", "reason"])
WITHIN = 1.96
"""Standard errors in which a difference is taken for noise: 95 % of a normal distribution."""


def published_table(reports: Sequence[RunReport]) -> ResultsTable | None:
    """A row for each published figure of these runs' methods, on their model or in the toy version of their pack.

    Returns:
        A verdict (within 1.96 standard errors, better, worse, or that the two cannot be compared, for which there is a
        reason), theirs, ours, the difference, and our standard error over items and seeds; that of the published figure
        is not known. Accuracies are in percent. None if nothing was published of these runs.
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
            verdict, ours = _ours(row, point)
            lines.append([Cell(verdict), *_theirs(row, point), *ours])
            if row["remark"] and row["our_metrics"] and row["status"] != CONTRADICTORY:
                remarks[f"{row['paper']}, {row['table']}: {row['remark']}."] = None
    if not lines:
        return None
    columns = ["verdict", *SOURCE, "method", "sparsity", "our run", "benchmark", "published"]
    columns += ["ours", "difference", "standard error", "reason"]
    notes = [*_notes(lines), *remarks]
    if not_run:
        notes.append(f"Of the same packs, but without a run of ours: {'; '.join(not_run)}.")
    groups = tuple(", ".join(cell.text for cell in line[1 : 1 + len(SOURCE)]) for line in lines)
    return ResultsTable(columns, lines, tuple(notes), keys=KEYS, groups=groups, headed=frozenset(SOURCE))


def verdict_text(table: ResultsTable) -> str:
    """What a comparison comes to, in a sentence."""
    counts = Counter(row[0].text for row in table.cells)
    count = f"{len(table.cells)} published figure{'s' * (len(table.cells) > 1)}"
    if counts[NOT_COMPARABLE] == len(table.cells):
        reasons = {row[-1].text for row in table.cells}
        why = f": {reasons.pop()}" if len(reasons) == 1 else "; the last column says why"
        return f"No verdict: of {count} none can be compared with ours{why}."
    told = {"agree within noise": counts[AGREES], "ours better": counts["better"], "ours worse": counts["worse"]}
    told["not comparable"] = counts[NOT_COMPARABLE]
    return f"Of {count}: {', '.join(f'{name} {number}' for name, number in told.items() if number)}."


def with_verdict(table: ResultsTable) -> ResultsTable:
    """The rows of a comparison that were compared, and what it comes to."""
    compared = [row[:-1] for row in table.cells if row[0].text != NOT_COMPARABLE]
    return ResultsTable(table.columns[:-1], compared, (*(table.notes if compared else ()), verdict_text(table)))


def _measured(row: PublishedRow, point: Point) -> Measured | None:
    """Our figure: of several metrics the mean, with the errors of independent ones; None if one is lacking."""
    found = [point.measured(key) for key in our_metric_keys(row, point)]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    value, noises = mean(one.value for one in known), [one.noise for one in known if one.noise is not None]
    noise = sqrt(sum(noise**2 for noise in noises)) / len(known) if len(noises) == len(known) else None
    return Measured(value, noise, noise)


def _ours(row: PublishedRow, point: Point) -> tuple[str, list[Cell]]:
    """(The verdict, our side of a row with the reason)."""
    measured, why = _measured(row, point), _hindrances(row, point)
    verdict, reason = NOT_COMPARABLE, Cell("; ".join(why) or "-")
    if measured is None:
        return verdict, [Cell("-"), Cell("-"), Cell("-"), reason]
    key = row["our_metrics"].split()[0]
    scale, _ = scale_and_digits(key)
    value, error = scale * measured.value, None if measured.noise is None else scale * measured.noise
    difference = value - float(row["value"])
    if not why and error is not None:
        better = (difference < 0) == lower_is_better(key)
        verdict = AGREES if abs(difference) <= WITHIN * error else "better" if better else "worse"
    cells = [
        Cell(f"{value:.2f}", value),  # as papers print them
        Cell(f"{difference:+.2f}", difference) if is_of_model(row, point) else Cell("-"),
        Cell("-") if error is None else Cell(f"{error:.2f}", error),
        reason,
    ]
    return verdict, cells


def _hindrances(row: PublishedRow, point: Point) -> list[str]:
    """Why the two figures cannot be compared."""
    if not is_of_model(row, point):
        return [TOY]
    report, measured = point.reports[0], _measured(row, point)
    why = list(departures(row["model_card"], report))
    if row["status"] == CONTRADICTORY:
        return [*why, f"sources contradict each other: {row['remark']}"]
    if not row["our_metrics"]:
        return [*why, row["remark"]]
    if (limit := report["settings"]["eval"].get("limit")) is not None:
        why.append(f"eval.limit={limit}")
    if not point.is_unpruned:
        removed, published = report["experts"]["ratio"], row["expert_sparsity"]
        if published and abs(removed - float(published)) > SPARSITY_TOLERANCE:
            why.append(f"{100 * removed:.1f} % of the experts removed and not {100 * float(published):g} %")
        if not published:
            why += other_expert_ratio(row["model_card"], report)
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


def _theirs(row: PublishedRow, point: Point) -> list[Cell]:
    share, value = 100 * float(row["sparsity"]), float(row["value"])
    mark = "" if row["status"] == "primary" else f" ({row['status']})"
    texts = [row["paper"], row["table"], row["model"], row["method"]]
    run_and_task = [Cell(point.label), Cell(row["task"])]
    return [*map(Cell, texts), Cell(f"{share:g} %", share), *run_and_task, Cell(f"{row['value']}{mark}", value)]


def _notes(lines: Sequence[Sequence[Cell]]) -> list[str]:
    notes = [
        f"Verdict: within {WITHIN} standard errors of ours, over items and seeds; that of the published figure is not "
        "known."
    ]
    if any(cell.text.endswith("(unverified)") for line in lines for cell in line):
        notes.append("Unverified figures are from notes of others on the paper, whose own tables were not seen.")
    return notes
