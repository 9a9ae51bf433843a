"""Figures over several models: what pruning costs where layers have many experts, and where they have few."""

from collections.abc import Iterator, Sequence
from math import hypot

from stun_exp.report.data.points import Point
from stun_exp.report.data.studies import Study
from stun_exp.report.figures import charts
from stun_exp.report.figures.axes import Axis, Reference
from stun_exp.report.figures.spec import FigureSpec, Quality, Value, drawn_lines, left_out


def by_experts(studies: Sequence[Study], quality: Quality) -> Iterator[FigureSpec]:
    """What each method does to a benchmark, against the number of experts in a layer of the model."""
    spots: dict[str, list[tuple[float, Value]]] = {}
    several = len({point.sparsity for study in studies for point in study.points}) > 1
    for study in studies:
        for point in study.points:
            name = f"{point.label}, {100 * point.sparsity:g} %" if several else point.label
            spots.setdefault(name, []).append((_experts(point), _change(study, point, quality)))
    over_several = {name: found for name, found in spots.items() if len({x for x, value in found if value}) > 1}
    if not over_several:
        return
    drawn, lacking = drawn_lines(studies[0], over_several)
    known = any(error is not None for line in drawn for error in line.error)
    models: dict[float, list[str]] = {}
    for study in studies:
        models.setdefault(_experts(study.points[0]), []).append(study.model)
    ticks = {experts: f"{experts:g}" for experts in sorted(models)}
    of_size = [f"{text}: {', '.join(models[experts])}" for experts, text in ticks.items()]
    x = Axis("experts in a layer", "log", ticks)
    y = Axis(f"change of {quality.name}")
    yield FigureSpec(
        f"experts-in-a-layer-{quality.task}",
        f"{quality.task} against the number of experts",
        [
            *(["Lower is better."] if quality.lower_is_better else []),
            f"Models: {'; '.join(of_size)}.",
            "Bars: standard error of the difference." if known else "No standard errors are known.",
            *lacking,
            *left_out("with one number of experts only", [name for name in spots if name not in over_several]),
        ],
        lambda title: charts.lines(title, drawn, x, y, Reference("unpruned", 0.0), joined=False),
    )


def _experts(point: Point) -> float:
    return float(max(point.reports[0]["experts"]["before"]))


def _change(study: Study, point: Point, quality: Quality) -> Value:
    """The benchmark's figure less the unpruned model's; their errors count as independent, which makes it wide."""
    after, before = quality.of(point), quality.of(study.unpruned) if study.unpruned else None
    if after is None or before is None:
        return None
    errors = [error for _, error in (after, before) if error is not None]
    return after[0] - before[0], hypot(*errors) if len(errors) == 2 else None
