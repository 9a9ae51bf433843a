"""Figures of one benchmark along settings that vary: lines along one, or maps of two."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stun_exp.report.data.forms import LARGEST_NUMBER
from stun_exp.report.data.metrics import scale_and_digits
from stun_exp.report.data.points import Point
from stun_exp.report.data.studies import (
    RATIO,
    SPARSITY,
    Group,
    Study,
    at_most_common,
    distinguishing_settings,
    requested,
    together,
)
from stun_exp.report.figures import charts
from stun_exp.report.figures.axes import MOST_DRAWN, Axis, logarithmic, span_a_decade
from stun_exp.report.figures.measures import Quality
from stun_exp.report.figures.spec import MANY_TICKS, FigureSpec, left_out, line_figure


def ablation(study: Study, quality: Quality) -> Iterator[FigureSpec]:
    """Against a setting that varies, the one of numbers if there is one such, or as maps of two."""
    points, along, said = ablated(study)
    if not along:
        return
    groups = together(points, *along)
    many = [group for group in groups if len(group.points) > 1]
    said += left_out("with one value only", [group.name for group in groups if group not in many])
    if len(along) == 2:
        values = [value[0] for group in many for point in group.points if (value := quality.of(point))]
        tame = [value for value in values if value <= MOST_DRAWN] or values
        if max(values, default=0) > max(tame, default=0):
            said.append(f"More than {MOST_DRAWN:g} has the color of the largest of the others.")
        for group in many if values else ():
            yield from _map(quality, group, along, said, (min(tame), max(tame)))
    else:
        (setting,) = along
        order = _ordered([requested(point, setting) for group in many for point in group.points])
        numbers = _numbers(order)
        places = dict(zip(order, numbers or map(float, range(len(order))), strict=True))
        x = _axis(setting, places, numbers is not None)
        spots = {g.name: [(places[requested(point, setting)], quality.of(point)) for point in g.points] for g in many}
        yield from line_figure(study, quality, setting, x, spots, said, joined=numbers is not None)


def _map(
    quality: Quality, group: Group, factors: Sequence[str], said: Sequence[str], between: tuple[float, float]
) -> Iterator[FigureSpec]:
    """One method's figures over two settings, in colors that go from the least to the largest of all methods'."""
    across, down = (_ordered([requested(point, setting) for point in group.points]) for setting in factors)
    values = {tuple(requested(point, setting) for setting in factors): quality.of(point) for point in group.points}
    found = [[values.get((column, row)) for column in across] for row in down]
    grid = [[value and value[0] for value in row] for row in found]
    blank = sum(value is None for row in grid for value in row)
    x, y = (
        Axis(setting, ticks={float(place): text for place, text in enumerate(order)})
        for setting, order in zip(factors, (across, down), strict=True)
    )
    if blank < len(across) * len(down):
        yield FigureSpec(
            f"{'-'.join(factors)}-{quality.task}-{group.name}",
            f"{quality.task} of {group.name} over {' and '.join(factors)}",
            [
                f"In colors: {quality.name}.",
                *(["Lower is better."] if quality.lower_is_better else []),
                *said,
                *(
                    [f"Blank: {blank} of {len(across) * len(down)}, not run or without a finite value."]
                    if blank
                    else []
                ),
            ],
            lambda title: charts.heat(title, grid, x, y, quality.name, scale_and_digits(quality.key)[1], between),
        )


def ablated(study: Study) -> tuple[list[Point], list[str], list[str]]:
    """(Points of one sparsity, and expert ratio; the settings to draw them along; what to say of others)."""
    points, others = at_most_common(study.points, SPARSITY)
    said = [f"At {100 * points[0].sparsity:g} % total sparsity."] if others else []
    if study.several_ratios:
        points, _ = at_most_common(points, RATIO)
        said.append(f"With {100 * requested(points[0], RATIO):g} % of the experts removed.")
    factors = distinguishing_settings(points)
    numbers = [name for name in factors if _numbers([v for v in (requested(p, name) for p in points) if v is not None])]
    along = numbers if len(numbers) == 1 else _of_most_values(points, factors)
    names = dict.fromkeys(name for point in points for name in point.settings)
    tied = [name for name in names if name not in factors and len({requested(point, name) for point in points}) > 1]
    return points, along, said + [f"With it varies {name}." for name in tied if along]


def _of_most_values(points: Sequence[Point], factors: Sequence[str]) -> list[str]:
    """The two settings with the most values, if there are more than two: the axes of maps."""
    most = sorted(factors, key=lambda name: -len({requested(point, name) for point in points}))[:2]
    return [name for name in factors if name in most]


def _axis(setting: str, places: dict[str, float], numbers: bool) -> Axis:
    """Logarithmic for numbers that span a decade, with a tick at each value if they are few."""
    ticks = {place: text for text, place in places.items()}
    if not numbers:
        return Axis(setting, "names", ticks)
    x = logarithmic(setting, list(ticks)) if span_a_decade(list(ticks)) else Axis(setting)
    return replace(x, ticks=ticks) if len(ticks) <= MANY_TICKS else x


def _ordered(values: Sequence[str | None]) -> list[str]:
    """Each once, numbers by size; a setting that is not there is `-`."""
    once = list(dict.fromkeys("-" if value is None else value for value in values))
    numbers = _numbers(once)
    return once if numbers is None else [text for _, text in sorted(zip(numbers, once, strict=True))]


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """None unless all are, and of a size that can be drawn."""
    try:
        found = [float(text) for text in texts]
    except ValueError:
        return None
    return found if all(abs(number) <= LARGEST_NUMBER for number in found) else None
