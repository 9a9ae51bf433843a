"""A figure before it is drawn: what is shown, and what its caption has to say."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import Any

from stun_exp.report.data.forms import LARGEST_NUMBER
from stun_exp.report.data.metrics import lower_is_better, scale_and_digits
from stun_exp.report.data.points import Point
from stun_exp.report.data.studies import Study
from stun_exp.report.figures import charts
from stun_exp.report.figures.axes import Axis, Reference, logarithmic, span_a_decade
from stun_exp.report.figures.style import COLORS, Line

MOST_METHODS = 30
"""Methods that one figure holds."""
NAMED_METHODS = 8
"""Methods that a caption names before it counts the rest."""

Value = tuple[float, float | None] | None
"""A number with its standard error, where they are known."""
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


@dataclass(frozen=True)
class Quality:
    """A benchmark's headline metric, accuracies in percent."""

    key: str
    task: str

    @property
    def name(self) -> str:
        metric = self.key.removeprefix(f"{self.task}/").partition(",")[0]
        return metric if self.lower_is_better else f"{metric} (%)"

    @property
    def lower_is_better(self) -> bool:
        return lower_is_better(self.key)

    def of(self, point: Point) -> Value:
        """None where it is missing, or not finite, or beyond what can be drawn."""
        measured, (scale, _) = point.measured(self.key), scale_and_digits(self.key)
        if measured is None or not abs(measured.value) <= LARGEST_NUMBER:
            return None
        error = measured.error
        return scale * measured.value, None if error is None or error > LARGEST_NUMBER else scale * error

    def unpruned(self, study: Study) -> Reference | None:
        value = self.of(study.unpruned) if study.unpruned else None
        return Reference("unpruned", value[0]) if value else None

    def axis(self, drawn: Sequence[Line]) -> Axis:
        """A perplexity that explodes has a logarithmic one."""
        values = [value for line in drawn for value in line.y]
        steep = self.lower_is_better and span_a_decade(values)
        return logarithmic(self.name, values) if steep else Axis(self.name)


def drawn_lines(study: Study, spots: Spots) -> tuple[list[Line], list[str]]:
    """What can be drawn of them, and what a caption says of the rest.

    A method keeps its color over all figures, as far as the colors go round.
    """
    known = {name: sorted((x, *value) for x, value in found if value) for name, found in spots.items()}
    names = [name for name, found in known.items() if found]
    shown = names[:MOST_METHODS]
    colors = study.methods if set(shown) <= set(study.methods[: len(COLORS)]) else shown
    lines = [
        Line(
            name,
            [x for x, _, _ in known[name]],
            [y for _, y, _ in known[name]],
            [error for _, _, error in known[name]],
            colors.index(name),
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
        yield FigureSpec(
            f"{against}-{quality.task}",
            f"{quality.task} against {against}",
            [*about_quality(study, quality, drawn), *said, *lacking],
            lambda title: charts.lines(title, drawn, x, quality.axis(drawn), quality.unpruned(study), joined),
        )


def left_out(why: str, names: Sequence[str]) -> list[str]:
    """The sentence about what a figure leaves out, if it leaves out anything."""
    more = f" and {len(names) - NAMED_METHODS} more" if len(names) > NAMED_METHODS else ""
    return [f"Left out, {why}: {', '.join(names[:NAMED_METHODS])}{more}."] if names else []


def about_errors(study: Study, lines: Iterable[Line]) -> list[str]:
    """What the error bars are, or that there are none."""
    seeds = sorted({len(point.reports) for point in study.points})
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    means = [f"Means of {count} seeds."] if seeds[-1] > 1 else []
    if all(error is None for line in lines for error in line.error):
        return [*means, "No standard errors are known."]
    if not means:
        return ["Bars: standard error over the benchmark's items."]
    return [*means, "Bars: standard error over the seeds" + ("; of one seed, over the items." if 1 in seeds else ".")]


def about_quality(study: Study, quality: Quality, lines: Iterable[Line]) -> list[str]:
    """Which way is better, what the bars are, and whether the unpruned model is there."""
    return [
        *(["Lower is better."] if quality.lower_is_better else []),
        *about_errors(study, lines),
        *([] if quality.unpruned(study) else ["The unpruned model was not measured."]),
    ]


def mean_of_seeds(values: Sequence[float | None]) -> Value:
    """None if a value is missing or not finite."""
    numbers = [value for value in values if value is not None and abs(value) <= LARGEST_NUMBER]
    if len(numbers) < len(values):
        return None
    return mean(numbers), stdev(numbers) / sqrt(len(numbers)) if len(numbers) > 1 else None
