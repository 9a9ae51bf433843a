"""A figure before it is drawn: what is shown, and what its caption has to say."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose, sqrt
from operator import itemgetter
from statistics import mean, stdev
from typing import Any

from stun_exp.report.data.forms import LARGEST_NUMBER
from stun_exp.report.data.points import Point
from stun_exp.report.data.studies import Study
from stun_exp.report.figures import charts
from stun_exp.report.figures.axes import MOST_DRAWN, Axis
from stun_exp.report.figures.looks import looks
from stun_exp.report.figures.measures import Measure, Quality, Value, axis_of, references, unpruned
from stun_exp.report.figures.style import COLORS, Line

MOST_METHODS = 30
"""Methods that one figure holds."""
MANY_TICKS = 8
"""That an axis has where its values are given."""
NAMED_METHODS = 8
"""Methods that a caption names before it counts the rest."""

Spots = Mapping[str, Sequence[tuple[float, Value]]]
"""For each method its values, and where they stand on the x axis."""


@dataclass(frozen=True)
class FigureSpec:
    stem: str
    title: str
    said: list[str]
    """The caption's sentences."""
    draw: Callable[[str], Any]
    """Draws it under a title."""


def drawn_lines(study: Study, spots: Spots) -> tuple[list[Line], list[str]]:
    """What can be drawn of them, and what a caption says of the rest."""
    known = {
        name: sorted(((x, *value) for x, value in found if value), key=itemgetter(0)) for name, found in spots.items()
    }
    names = [name for name, found in known.items() if found]
    shown = names[:MOST_METHODS]
    styles = looks(shown, study.methods)
    lines = [
        Line(
            name,
            [x for x, _, _ in known[name]],
            [y for _, y, _ in known[name]],
            [error for _, _, error in known[name]],
            styles[name],
        )
        for name in shown
    ]
    lacking = [
        name if name not in names else f"{name} ({len(found) - len(known[name])} of {len(found)})"
        for name, found in spots.items()
        if len(known[name]) < len(found)
    ]
    return lines, [*left_out("without a finite value", lacking), *left_out("for want of room", names[MOST_METHODS:])]


def line_figure(
    study: Study, quality: Quality, against: str, x: Axis, spots: Spots, said: Sequence[str], joined: bool = True
) -> Iterator[FigureSpec]:
    """A benchmark against something, a line for each method, or points alone; none if nothing can be drawn."""
    drawn, lacking = drawn_lines(study, spots)
    if drawn:
        y = axis_of(quality, drawn)
        yield FigureSpec(
            f"{against}-{quality.task}",
            f"{quality.task} against {against}",
            [*about_quality(study, quality, drawn), *coinciding(drawn), *said, *lacking],
            lambda title: charts.lines(title, drawn, x, y, references(quality, study), joined),
        )


def coinciding(lines: Sequence[Line]) -> list[str]:
    """Which lines of one panel hide each other, for their values are equal wherever both have some."""
    if len(lines) > len(COLORS):
        return []  # each has a panel
    groups: list[list[Line]] = []
    for line in lines:
        for group in groups:
            if all(_coincide(line, other) for other in group):
                group.append(line)
                break
        else:
            groups.append([line])
    found = [[line.name for line in group] for group in groups if len(group) > 1]
    return [f"{', '.join(names[:-1])} and {names[-1]} coincide." for names in found]


def _coincide(one: Line, other: Line) -> bool:
    """Places on the x axis are equal if three digits are, as those of achieved sparsities."""
    values = {f"{x:.3g}": y for x, y in zip(one.x, one.y, strict=True)}
    places = [f"{x:.3g}" for x in other.x]
    shared = [(values[x], y) for x, y in zip(places, other.y, strict=True) if x in values]
    return bool(shared) and all(isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in shared)


def sparsity_axis(points: Iterable[Point]) -> Axis:
    """With a tick at each requested sparsity if they are few."""
    requested = sorted({point.sparsity for point in points})
    ticks = {100 * sparsity: f"{100 * sparsity:g}" for sparsity in requested}
    return Axis("total sparsity (%)", ticks=ticks if len(ticks) <= MANY_TICKS else {})


def percent_gone(point: Point) -> float:
    return 100 * float(mean(report["sparsity"]["achieved"] for report in point.reports))


def left_out(why: str, names: Sequence[str]) -> list[str]:
    """The sentence about what a figure leaves out, if it leaves out anything."""
    more = f" and {len(names) - NAMED_METHODS} more" if len(names) > NAMED_METHODS else ""
    return [f"Left out, {why}: {', '.join(names[:NAMED_METHODS])}{more}."] if names else []


def about_errors(points: Iterable[Point], lines: Iterable[Line]) -> list[str]:
    """What the error bars are, or that there are none."""
    seeds = sorted({len(point.reports) for point in points})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    means = [f"Means of {count} seeds."] if seeds[-1] > 1 else []
    if all(error is None for line in lines for error in line.error):
        return [*means, "No standard errors are known."]
    if not means:
        return ["Bars: standard error over the benchmark's items."]
    return [*means, "Bars: standard error over the seeds" + ("; of one seed, over the items." if 1 in seeds else ".")]


def about_quality(study: Study, quality: Quality, lines: Sequence[Line]) -> list[str]:
    """Which way is better, what the bars are, and whether the unpruned model is there."""
    return [
        *about_axis(quality, axis_of(quality, lines)),
        *about_errors(study.points, lines),
        *([] if unpruned(quality, study) else ["The unpruned model was not measured."]),
    ]


def about_axis(measure: Measure, axis: Axis) -> list[str]:
    """Which way is better, and what lies beyond."""
    return [
        *(["Lower is better."] if measure.lower_is_better else []),
        *([f"Arrows: beyond the axis, more than {MOST_DRAWN:g}."] if axis.ceiling is not None else []),
    ]


def mean_of_seeds(values: Sequence[float | None]) -> Value:
    """None if a value is missing or not finite."""
    numbers = [value for value in values if value is not None and abs(value) <= LARGEST_NUMBER]
    if len(numbers) < len(values):
        return None
    return mean(numbers), stdev(numbers) / sqrt(len(numbers)) if len(numbers) > 1 else None
