"""Who is best on a benchmark, among points of one sparsity, and who is within noise of the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, isfinite, nan

from stun_exp.report.data.metrics import chance, lower_is_better
from stun_exp.report.data.points import Measured, Point

LEVEL = 0.05
"""Below it a difference is significant."""
PValues = Mapping[tuple[str, frozenset[tuple[int, ...]]], float]
"""(metric, the places of two points) -> the p-value of their paired test, corrected for all that are made."""


@dataclass(frozen=True)
class Contest:
    """The pruned points of one sparsity on one benchmark. Nobody wins alone, or at chance."""

    sparsity: float
    key: str
    best: tuple[Point, ...]
    """Those with the best figure: several if they tie, none if it is no better than chance."""
    near: tuple[Point, ...]
    """The others that their paired tests do not tell from it."""
    close: tuple[Point, ...]
    """Of those without a test, what lies within one standard error of the difference, errors taken for independent."""

    @property
    def bold(self) -> tuple[Point, ...]:
        """All that nobody is known to beat."""
        return (*self.best, *self.near, *self.close)


def contests(found: Sequence[Point], keys: Sequence[str], p_values: PValues) -> list[Contest]:
    """A contest for each sparsity and metric that two pruned points or more have a finite figure in."""
    held = []
    for sparsity in dict.fromkeys(point.sparsity for point in found if not point.is_unpruned):
        field = [point for point in found if point.sparsity == sparsity and not point.is_unpruned]
        for key in keys:
            running = [point for point in field if (m := point.measured(key)) is not None and isfinite(m.value)]
            if len(running) > 1:
                held.append(_contest(sparsity, key, running, p_values))
    return held


def is_above_chance(point: Point, key: str) -> bool:
    """Whether a finite figure is more than one standard error better than guessing, or than none right at all."""
    measured = point.measured(key)
    if lower_is_better(key) or measured is None:
        return measured is not None
    return measured.value - (chance(point.reports[0], key) or 0.0) > (measured.noise or 0.0)


def _contest(sparsity: float, key: str, running: Sequence[Point], p_values: PValues) -> Contest:
    top = (min if lower_is_better(key) else max)(_measured(point, key).value for point in running)
    able = [point for point in running if is_above_chance(point, key)]
    best = [point for point in able if _measured(point, key).value == top]
    near, close = [], []
    for point in able if best else []:
        if _measured(point, key).value == top:
            continue
        p = p_values.get((key, frozenset((best[0].places, point.places))), nan)
        if p >= LEVEL:
            near.append(point)
        elif p != p and _within_one_error(_measured(point, key), _measured(best[0], key)):
            close.append(point)
    return Contest(sparsity, key, tuple(best), tuple(near), tuple(close))


def _within_one_error(one: Measured, other: Measured) -> bool:
    return abs(one.value - other.value) <= hypot(one.noise or 0, other.noise or 0)


def _measured(point: Point, key: str) -> Measured:
    measured = point.measured(key)
    assert measured is not None
    return measured
