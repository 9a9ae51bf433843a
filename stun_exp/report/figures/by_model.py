"""Figures over several models: the same methods on each, and what pruning costs where layers have many experts."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import hypot, isfinite
from statistics import mean

from stun_exp.report.data.points import Point
from stun_exp.report.data.studies import SPARSITY, Study, together
from stun_exp.report.figures import charts
from stun_exp.report.figures.axes import Axis, Reference, below_a_ceiling
from stun_exp.report.figures.charts import Panel
from stun_exp.report.figures.looks import looks
from stun_exp.report.figures.measures import (
    MeanAccuracy,
    Measure,
    Quality,
    Value,
    axis_of,
    chance_level,
    unpruned,
)
from stun_exp.report.figures.spec import (
    FigureSpec,
    about_axis,
    about_errors,
    coinciding,
    drawn_lines,
    left_out,
    percent_gone,
    sparsity_axis,
)
from stun_exp.report.figures.style import COLORS, Line

MOST_PANELS = 4
"""Models that are shown beside each other."""


def side_by_side(studies: Sequence[Study], measure: Measure) -> Iterator[FigureSpec]:
    """Against the total sparsity, a panel for each model; all lines begin at the unpruned model."""
    found = [(study, *_against_sparsity(study, measure)) for study in studies]
    found = [(study, lines, said) for study, lines, said in found if lines]
    names = [line.name for _, lines, _ in found for line in lines]
    in_several = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if not in_several or len(found) > MOST_PANELS:
        return
    shown = [*in_several, *(name for name in names if names.count(name) == 1)][: len(COLORS)]
    styles = looks(shown, studies[0].methods)
    panels = [
        Panel(
            _titled(study),
            [
                _from_unpruned(replace(line, style=styles[line.name]), study, measure)
                for line in lines
                if line.name in shown
            ],
            chance_level(measure, study),
        )
        for study, lines, _ in found
    ]
    y = axis_of(measure, [line for panel in panels for line in panel.lines])
    x = sparsity_axis([point for study, *_ in found for point in (*study.points, study.unpruned) if point])
    yield FigureSpec(
        f"side-by-side-{measure.task}",
        f"{measure.task} against sparsity, by model",
        [
            *([f"Mean over {measure.of_what}."] if isinstance(measure, MeanAccuracy) else []),
            *about_axis(measure, y),
            *about_errors(
                [point for study, *_ in found for point in study.points],
                [line for panel in panels for line in panel.lines],
            ),
            *(f"{study.model}: {sentence}" for study, _, said in found for sentence in said),
            *left_out("for want of room", [name for name in dict.fromkeys(names) if name not in shown]),
        ],
        lambda title: charts.side_by_side(title, panels, x, y),
    )


def _against_sparsity(study: Study, measure: Measure) -> tuple[list[Line], list[str]]:
    """(The lines of methods that were run at several sparsities, what to say of them)."""
    every = together(study.points, SPARSITY)
    groups = [group for group in every if len(group.points) > 1]
    single = left_out("with one sparsity only", [group.name for group in every if len(group.points) == 1])
    spots = {group.name: [(percent_gone(p), measure.of(p)) for p in group.points] for group in groups}
    lines, lacking = drawn_lines(study, spots)
    missing = [] if unpruned(measure, study) else ["The unpruned model was not measured."]
    return lines, [*coinciding(lines), *missing, *single, *lacking]


def _from_unpruned(line: Line, study: Study, measure: Measure) -> Line:
    before = unpruned(measure, study)
    if before is None:
        return line
    value, error = before
    return replace(line, x=[0.0, *line.x], y=[value, *line.y], error=[error, *line.error])


def _titled(study: Study) -> str:
    """The model, and how much alike its experts are, where the reports have it."""
    measured = [report.get("redundancy") or {} for point in study.points for report in point.reports]
    found = [one.get("nearest_weight_cosine") for one in measured]
    cosines = [cosine for cosine in found if cosine is not None and isfinite(cosine)]
    return f"{study.model}\nnearest experts' weights: cosine {mean(cosines):.2f}" if cosines else study.model


def by_experts(studies: Sequence[Study], quality: Quality) -> Iterator[FigureSpec]:
    """What each method does to a benchmark, against the number of experts in a layer of the model."""
    spots: dict[str, list[tuple[float, Value]]] = {}
    several = len({point.sparsity for study in studies for point in study.points}) > 1
    studies = [study for study in studies if study.points[0].reports[0]["experts"]["before"]]
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
    y = below_a_ceiling(f"change of {quality.name}", [value for line in drawn for value in line.y], steep=False)
    yield FigureSpec(
        f"experts-in-a-layer-{quality.task}",
        f"{quality.task} against the number of experts",
        [
            *about_axis(quality, y),
            f"Models: {'; '.join(of_size)}.",
            "Bars: standard error of the difference." if known else "No standard errors are known.",
            *coinciding(drawn),
            *lacking,
            *left_out("with one number of experts only", [name for name in spots if name not in over_several]),
        ],
        lambda title: charts.lines(title, drawn, x, y, [Reference("unpruned", 0.0)], joined=False),
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
