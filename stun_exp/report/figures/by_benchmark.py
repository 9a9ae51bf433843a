"""Figures of one benchmark: against the sparsity, the experts' share of it, or as a ranking."""

from collections.abc import Iterator
from statistics import mean

from stun_exp.report.data.points import Point
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.data.studies import (
    RATIO,
    SPARSITY,
    Study,
    together,
)
from stun_exp.report.figures import charts
from stun_exp.report.figures.axes import Axis
from stun_exp.report.figures.by_setting import ablated
from stun_exp.report.figures.measures import Quality, axis_of, references
from stun_exp.report.figures.spec import (
    FigureSpec,
    about_quality,
    drawn_lines,
    left_out,
    line_figure,
    percent_gone,
    sparsity_axis,
)


def by_sparsity(study: Study, quality: Quality) -> Iterator[FigureSpec]:
    """Where a method was run at several sparsities."""
    groups = together(study.points, SPARSITY)
    if any(len(group.points) > 1 for group in groups):
        spots = {g.name: [(percent_gone(point), quality.of(point)) for point in g.points] for g in groups}
        yield from line_figure(study, quality, "total sparsity", sparsity_axis(study.points), spots, [])


def by_share(study: Study, quality: Quality) -> Iterator[FigureSpec]:
    """Where a method was run with several expert ratios at one total sparsity."""
    totals = sorted({point.sparsity for point in study.points})
    spots, single = {}, []
    for total in totals if study.several_ratios else ():
        for group in together([point for point in study.points if point.sparsity == total], RATIO):
            name = f"{group.name}, {100 * total:g} % in total" if len(totals) > 1 else group.name
            if len(group.points) > 1:
                spots[name] = [(_percent_by_experts(point), quality.of(point)) for point in group.points]
            else:
                single.append(name)
    x = Axis("share of the sparsity that experts take (%)")
    yield from line_figure(study, quality, "experts' share", x, spots, left_out("with one share only", single))


def ranking(study: Study, quality: Quality) -> Iterator[FigureSpec]:
    """All by quality, where no other figure shows them."""
    groups = together(study.points)
    along_sparsity = len(together(study.points, SPARSITY)) < len(groups)
    if along_sparsity or study.several_ratios or ablated(study)[1]:
        return
    drawn, lacking = drawn_lines(study, {group.name: [(0.0, quality.of(group.points[0]))] for group in groups})
    drawn.sort(key=lambda line: line.y[0], reverse=not quality.lower_is_better)
    if drawn:
        yield FigureSpec(
            f"ranking-{quality.task}",
            f"{quality.task} by method",
            ["The best is on top.", *about_quality(study, quality, drawn), *lacking],
            lambda title: charts.rows(title, drawn, axis_of(quality, drawn), references(quality, study)),
        )


def _percent_by_experts(point: Point) -> float:
    """Of all that is gone, the share that went with whole experts, or parts of a dense model."""
    return 100 * mean(_by_experts(report) for report in point.reports)


def _by_experts(report: RunReport) -> float:
    layers = report["sparsity"]["per_layer"]
    removed, zeros = (sum(layer[what] for layer in layers) for what in ("removed", "zeros"))
    removed += report["sparsity"].get("restructured", 0)
    return float(removed / (removed + zeros or 1))
