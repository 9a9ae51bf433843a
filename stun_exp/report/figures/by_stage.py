"""Figures of what the stages did: what the selection of experts cost, which layers they went from, what was left."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import mean

from stun_exp.report.data.points import Point
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.data.studies import SPARSITY, Study, at_most_common, together
from stun_exp.report.figures import charts
from stun_exp.report.figures.axes import Axis, Reference, logarithmic, span_a_decade
from stun_exp.report.figures.measures import Quality, Value, axis_of, chance_level, over_benchmarks
from stun_exp.report.figures.spec import (
    MOST_METHODS,
    FigureSpec,
    about_axis,
    about_errors,
    coinciding,
    drawn_lines,
    left_out,
    mean_of_seeds,
)
from stun_exp.report.figures.style import COLORS

KURTOSIS_STAGES = {"before": "dense", "experts": "experts\npruned", "weights": "weights\npruned"}


def cost(study: Study, qualities: Sequence[Quality]) -> Iterator[FigureSpec]:
    """Quality against what the selection of experts cost, in charged seconds and in passes."""
    points, said = _with_fewer_experts(study)
    measure = over_benchmarks(qualities)
    if not points or not measure:
        return
    chosen = {group.name: group.points[0] for group in together(points)}
    seconds, shared = _selection_seconds(study)
    spots = {name: [(seconds(point), measure.of(point))] for name, point in chosen.items()}
    drawn, lacking = drawn_lines(study, spots)
    if len(drawn) < 2:
        return
    y = axis_of(measure, drawn)
    if len(drawn) > len(COLORS):
        drawn = [replace(line, error=[None]) for line in drawn]
        said.append("Error bars are left out, for want of room.")
    else:
        said += about_errors(study.points, drawn)
    panels = [("selection (charged s)", drawn)]
    passes = [replace(line, x=[_mean_cost(chosen[line.name], "forward_passes")]) for line in drawn]
    if any(line.x[0] for line in passes):
        panels.append(("calibration passes", passes))
    else:
        said.append("No selection needed a calibration pass.")
    axes = [(logarithmic(label, [line.x[0] for line in lines]), lines) for label, lines in panels]
    yield FigureSpec(
        "cost",
        "Quality against the cost of expert selection",
        [f"Quality: {measure.of_what}.", *about_axis(measure, y), *shared, *coinciding(drawn), *said, *lacking],
        lambda title: charts.scatter(title, axes, y, chance_level(measure, study)),
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


def error_by_layer(study: Study) -> Iterator[FigureSpec]:
    """What the expert stage does to each layer's output, where the reports have it."""
    points, said = _with_fewer_experts(study)
    groups = together(points) if points else []
    layers = sorted({layer for point in points for report in point.reports for layer in _errors(report)})
    spots = {g.name: [(float(n), mean_of_seeds(_errors_at(n, g.points[0]))) for n in layers] for g in groups}
    drawn, lacking = drawn_lines(study, spots)
    if drawn:
        values = [value for line in drawn for value in line.y]
        seeds = about_errors(points, drawn) if any(len(point.reports) > 1 for point in points) else []
        x = Axis("MoE layer", ticks={float(n): str(n) for n in layers[:: -(-len(layers) // charts.MOST_WRITTEN)]})
        label = "reconstruction error"
        y = logarithmic(label, values) if span_a_decade(values) else Axis(label)
        yield FigureSpec(
            "expert-stage-error",
            "Error of the expert stage by layer",
            ["Of the layer's output, on the calibration tokens.", *seeds, *coinciding(drawn), *said, *lacking],
            lambda title: charts.lines(title, drawn, x, y),
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
        seeds = about_errors(study.points, drawn) if any(len(point.reports) > 1 for point in points) else []
        normal = [Reference("normal distribution", 3.0)]
        yield FigureSpec(
            "kurtosis",
            "Kurtosis of the weights after each stage",
            ["Of all prunable weights but the zeros.", *seeds, *coinciding(drawn), *said, *lacking],
            lambda title: charts.lines(title, drawn, stages, Axis("kurtosis"), normal),
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


def _errors(report: RunReport) -> dict[int, float | None]:
    """By layer; of reports of older versions there are none."""
    rows = (report.get("expert_stage") or {}).get("per_layer") or []
    return {row["layer"]: row.get("reconstruction_error") for row in rows}


def _errors_at(layer: int, point: Point) -> list[float | None]:
    return [_errors(report).get(layer) for report in point.reports]


def _mean_cost(point: Point, what: str) -> float:
    return float(mean(report["cost"]["experts"][what] for report in point.reports))


def _selection_seconds(study: Study) -> tuple[Callable[[Point], float], list[str]]:
    """(What a point's selection cost, the sentence about runs that share a plan).

    Runs that came to one plan in one way differ in seconds by noise alone, so that each has their mean.
    """
    by_plan: dict[str, list[float]] = {}
    for report in (report for point in study.points for report in point.reports):
        by_plan.setdefault(_plan(report), []).append(report["cost"]["experts"]["charged_seconds"])
    shared = any(len(set(seconds)) > 1 for seconds in by_plan.values())
    return (
        lambda point: mean(mean(by_plan[_plan(report)]) for report in point.reports),
        ["Runs with one expert plan have the mean of their seconds."] if shared else [],
    )


def _plan(report: RunReport) -> str:
    """What runs with one expert plan, made in one way, have in common."""
    settings, passes = report["settings"], report["cost"]["experts"]["forward_passes"]
    made_by = [settings["expert_pruner"], settings.get("calibration"), report["seed"], passes]
    plan = (report.get("expert_stage") or {}).get("plan_id")
    return json.dumps([plan, report["experts"]["before"], report["experts"]["after"], *made_by], sort_keys=True)


def _kurtosis(point: Point, stage: str) -> Value:
    return mean_of_seeds([report["diagnostics"]["kurtosis"][stage]["nonzero"] for report in point.reports])
