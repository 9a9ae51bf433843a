"""Figures of what the stages did: what the selection of experts cost, which layers they went from, what was left."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import hypot
from statistics import mean

from stun_exp.report.data.points import Point
from stun_exp.report.data.studies import SPARSITY, Study, at_most_common, together
from stun_exp.report.figures import charts
from stun_exp.report.figures.axes import Axis, Reference, logarithmic
from stun_exp.report.figures.spec import (
    MOST_METHODS,
    FigureSpec,
    Quality,
    Value,
    about_errors,
    drawn_lines,
    left_out,
    mean_of_seeds,
)
from stun_exp.report.figures.style import COLORS

KURTOSIS_STAGES = {"before": "dense", "experts": "experts\npruned", "weights": "weights\npruned"}


def cost(study: Study, qualities: Sequence[Quality]) -> Iterator[FigureSpec]:
    """Quality against what the selection of experts cost, in charged seconds and in passes."""
    points, said = _with_fewer_experts(study)
    taken = [quality for quality in qualities if not quality.lower_is_better] or qualities[:1]
    if not points or not taken:
        return
    chosen = {group.name: group.points[0] for group in together(points)}
    spots = {name: [(_cost(p, "charged_seconds"), _average([q.of(p) for q in taken]))] for name, p in chosen.items()}
    drawn, lacking = drawn_lines(study, spots)
    if len(drawn) < 2:
        return
    if len(drawn) > len(COLORS):
        drawn = [replace(line, error=[None]) for line in drawn]
        said.append("Error bars are left out, for want of room.")
    else:
        said += about_errors(study, drawn)
    panels = [("selection (charged s)", drawn)]
    passes = [replace(line, x=[_cost(chosen[line.name], "forward_passes")]) for line in drawn]
    if any(line.x[0] for line in passes):
        panels.append(("calibration passes", passes))
    else:
        said.append("No selection needed a calibration pass.")
    axes = [(logarithmic(label, [line.x[0] for line in lines]), lines) for label, lines in panels]
    y = Axis("mean accuracy (%)") if len(taken) > 1 else taken[0].axis(drawn)
    yield FigureSpec(
        "cost",
        "Quality against the cost of expert selection",
        [f"Quality: {', '.join(quality.task for quality in taken)}.", *said, *lacking],
        lambda title: charts.scatter(title, axes, y),
    )


def kept(study: Study) -> Iterator[FigureSpec]:
    """How many experts each layer keeps."""
    points, said = _with_fewer_experts(study)
    groups = together(points) if points else []
    if not groups:
        return
    grid = [_kept(group.points[0]) for group in groups[:MOST_METHODS]]
    step = -(-len(grid[0]) // charts.MOST_WRITTEN)
    layers = Axis("MoE layer", ticks={float(layer): str(layer) for layer in range(0, len(grid[0]), step)})
    methods = Axis("", ticks={float(row): group.name for row, group in enumerate(groups[:MOST_METHODS])})
    whole = all(count.is_integer() for row in grid for count in row)
    before = sorted({count for point in points for count in point.reports[0]["experts"]["before"]})
    yield FigureSpec(
        "experts-kept",
        "Experts that each layer keeps",
        [
            f"Of {' or '.join(map(str, before))}.",
            *([] if whole else ["Means of the seeds."]),
            *said,
            *left_out("for want of room", [group.name for group in groups[MOST_METHODS:]]),
        ],
        lambda title: charts.heat(title, grid, layers, methods, "experts", 0 if whole else 1),
    )


def kurtosis(study: Study) -> Iterator[FigureSpec]:
    """Of the weights that each stage leaves."""
    points, said = _at_one_sparsity(study)
    stages = Axis("", "names", {float(place): stage for place, stage in enumerate(KURTOSIS_STAGES.values())})
    spots = {
        group.name: [(float(place), _kurtosis(group.points[0], stage)) for place, stage in enumerate(KURTOSIS_STAGES)]
        for group in together(points)
    }
    drawn, lacking = drawn_lines(study, spots)
    if drawn:
        seeds = about_errors(study, drawn) if any(len(point.reports) > 1 for point in points) else []
        yield FigureSpec(
            "kurtosis",
            "Kurtosis of the weights after each stage",
            ["Of all prunable weights but the zeros.", *seeds, *said, *lacking],
            lambda title: charts.lines(title, drawn, stages, Axis("kurtosis"), Reference("normal distribution", 3.0)),
        )


def _at_one_sparsity(study: Study) -> tuple[list[Point], list[str]]:
    points, others = at_most_common(study.points, SPARSITY)
    return points, [f"At {100 * points[0].sparsity:g} % total sparsity."] if others else []


def _with_fewer_experts(study: Study) -> tuple[list[Point], list[str]]:
    """(The points of one sparsity that have fewer experts than the model, what to say of the others)."""
    points, said = _at_one_sparsity(study)
    whole = [point for point in points if not _removed(point)]
    named = [group.name for group in together(whole)] if whole else []
    return [point for point in points if _removed(point)], [*said, *left_out("with all experts", named)]


def _removed(point: Point) -> float:
    return float(mean(report["experts"]["ratio"] for report in point.reports))


def _kept(point: Point) -> list[float]:
    """By layer, mean over the seeds."""
    after = [report["experts"]["after"] for report in point.reports]
    return [float(mean(counts)) for counts in zip(*after, strict=True)]


def _cost(point: Point, what: str) -> float:
    return float(mean(report["cost"]["experts"][what] for report in point.reports))


def _kurtosis(point: Point, stage: str) -> Value:
    return mean_of_seeds([report["diagnostics"]["kurtosis"][stage]["nonzero"] for report in point.reports])


def _average(values: Sequence[Value]) -> Value:
    """Of several benchmarks, whose errors are independent; None if one is missing."""
    found = [value for value in values if value]
    if len(found) < len(values):
        return None
    errors = [error for _, error in found if error is not None]
    return mean(value for value, _ in found), hypot(*errors) / len(found) if len(errors) == len(found) else None
