"""What figures show of a point: a benchmark's metric, or the mean over several."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import hypot
from statistics import mean

from stun_exp.report.data.forms import LARGEST_NUMBER
from stun_exp.report.data.metrics import chance, lower_is_better, scale_and_digits
from stun_exp.report.data.points import Point
from stun_exp.report.data.studies import Study
from stun_exp.report.figures.axes import Axis, Reference, below_a_ceiling
from stun_exp.report.figures.style import Line

Value = tuple[float, float | None] | None
"""A number with its standard error, where they are known."""


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

    @property
    def of_what(self) -> str:
        return self.task

    def chance(self, study: Study) -> float | None:
        guessed = chance(study.points[0].reports[0], self.key)
        return None if guessed is None else scale_and_digits(self.key)[0] * guessed


@dataclass(frozen=True)
class MeanAccuracy:
    """The mean of several accuracies, in percent."""

    qualities: Sequence[Quality]
    task: str = "mean accuracy"
    name: str = "mean accuracy (%)"
    lower_is_better: bool = False

    @property
    def of_what(self) -> str:
        return ", ".join(quality.task for quality in self.qualities)

    def of(self, point: Point) -> Value:
        """None where one is missing; errors count as independent."""
        found = [value for quality in self.qualities if (value := quality.of(point))]
        if len(found) < len(self.qualities):
            return None
        errors = [error for _, error in found if error is not None]
        return mean(value for value, _ in found), hypot(*errors) / len(found) if len(errors) == len(found) else None

    def chance(self, study: Study) -> float | None:
        known = [guessed for quality in self.qualities if (guessed := quality.chance(study)) is not None]
        return mean(known) if len(known) == len(self.qualities) else None


Measure = Quality | MeanAccuracy


def over_benchmarks(qualities: Sequence[Quality]) -> Measure | None:
    """The mean accuracy or, if there is only one accuracy, that, and if there is none, the first of the others."""
    accuracies = [quality for quality in qualities if not quality.lower_is_better]
    if len(accuracies) > 1:
        return MeanAccuracy(accuracies)
    return next(iter(accuracies or qualities), None)


def unpruned(measure: Measure, study: Study) -> Value:
    return measure.of(study.unpruned) if study.unpruned else None


def references(measure: Measure, study: Study) -> list[Reference]:
    """What its values are compared with: the unpruned model's, and those of guessing."""
    before = unpruned(measure, study)
    return [*([Reference("unpruned", before[0])] if before else []), *chance_level(measure, study)]


def chance_level(measure: Measure, study: Study) -> list[Reference]:
    guessed = measure.chance(study)
    return [] if guessed is None else [Reference(f"chance ({guessed:.4g} %)", guessed, thin=True)]


def axis_of(measure: Measure, drawn: Iterable[Line]) -> Axis:
    """A perplexity that explodes has a logarithmic one, with a ceiling."""
    return below_a_ceiling(measure.name, [value for line in drawn for value in line.y], measure.lower_is_better)
