"""Paired tests between points on the same items: do they differ significantly?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from pathlib import Path
from statistics import mean

from stun_exp.report.data.metrics import headlines
from stun_exp.report.data.points import Measured, Point, points
from stun_exp.report.data.run_settings import RunReport
from stun_exp.report.data.samples import SAMPLES, Items, check_same_items, read_samples
from stun_exp.report.tables.contests import LEVEL, PValues
from stun_exp.report.tables.paired import holm, paired_p
from stun_exp.report.tables.results import column_names, figure_cell
from stun_exp.report.tables.table import Cell, ResultsTable

SMALLEST = 0.001
"""Below it a p-value is shown as such."""


@dataclass(frozen=True)
class PointPair:
    """Two points, and the runs that they have on the same seeds, in step."""

    a: Point
    b: Point
    places: tuple[tuple[int, int], ...]
    """Of the runs among all reports."""


@dataclass(frozen=True)
class PairedTests:
    """The paired tests of runs that may stand in one table."""

    reports: Sequence[RunReport]
    figures: Mapping[str, str]
    """Each headline metric -> its benchmark."""
    pairs: tuple[PointPair, ...]
    tests: Mapping[str, Sequence[float]]
    """Of each metric the p-value of each pair, corrected by Holm over the pairs; NaN where there is none."""
    lacking: tuple[str, ...]
    """Why pairs have none."""

    @property
    def p_values(self) -> PValues:
        """The tests that could be made."""
        pairs = [frozenset((pair.a.places, pair.b.places)) for pair in self.pairs]
        made = ((key, pair, p) for key, of_key in self.tests.items() for pair, p in zip(pairs, of_key, strict=True))
        return {(key, pair): p for key, pair, p in made if p == p}


def paired_tests(reports: Sequence[RunReport], folders: Sequence[Path | None]) -> PairedTests:
    """For each benchmark the p-values of each two points of one sparsity that differ in one thing, method or setting.

    Of the exact McNemar test where items are right or wrong, else of the Wilcoxon signed-rank test, two-sided,
    corrected by Holm over the pairs. With several seeds an item's value is its mean over those that both points have,
    so the test speaks of items and not of calibration texts.

    Args:
        reports: Of runs that may stand in one table.
        folders: Each run's own, with its samples.jsonl; without it, or if it is damaged, a pair has no p-value.

    Raises:
        ValueError: Two runs answered different items.
    """
    pairs = tuple(_pairs(points(reports)))
    figures = headlines(reports)
    needed = sorted({place for pair in pairs for both in pair.places for place in both}) if figures else []
    samples, damaged = _samples(needed, folders, figures)
    tests = {key: holm(_p_values(key, pairs, samples, folders)) for key in figures}
    lacking = [f"No p-value for want of whole items: {what}." for what in damaged.values()]
    absent = [place for place in needed if place not in samples and place not in damaged]
    if without := [str(folders[place] or reports[place]["name"]) for place in absent]:
        lacking.append(f"No p-value for want of {SAMPLES}: {', '.join(without)}.")
    return PairedTests(reports, figures, pairs, tests, tuple(lacking))


def significance_table(tested: PairedTests) -> ResultsTable | None:
    """A row for each pair: for each benchmark the difference of the figures, over the seeds that both have, and p.

    Bold: p below 0.05. None if there are no pairs, or no benchmarks.
    """
    if not tested.pairs or not tested.figures:
        return None
    rows = [
        [*map(Cell, _labels(pair)), Cell(f"{100 * pair.a.sparsity:g} %", 100 * pair.a.sparsity)]
        + [
            cell
            for key, p_values in tested.tests.items()
            for cell in (_difference(key, pair, tested.reports), _p_cell(p_values[number]))
        ]
        for number, pair in enumerate(tested.pairs)
    ]
    note = (
        "Figures are A minus B. p: exact McNemar test where items are right or wrong, else Wilcoxon signed-rank test, "
        "two-sided, on the same items; for each benchmark corrected by Holm over the pairs of this table. Bold: below "
        f"{LEVEL}. Over several seeds an item counts by its mean."
    )
    named = zip(column_names(tested.figures), tested.figures.values(), strict=True)
    headings = [heading for column, task in named for heading in (column, f"p ({task})")]
    return ResultsTable(["A", "B", "sparsity", *headings], rows, (note, *tested.lacking), keys=frozenset(["sparsity"]))


def _pairs(found: Sequence[Point]) -> Iterator[PointPair]:
    """Pairs with a seed in common; a setting that one point does not have goes with its method."""
    for a, b in combinations((point for point in found if not point.is_unpruned), 2):
        things = [a.settings[key] != b.settings[key] for key in a.settings.keys() & b.settings.keys()]
        things += [a.name != b.name, None not in (a.ratio, b.ratio) and a.ratio != b.ratio]
        of_b = {report["seed"]: place for report, place in zip(b.reports, b.places, strict=True)}
        places = [(p, of_b[r["seed"]]) for r, p in zip(a.reports, a.places, strict=True) if r["seed"] in of_b]
        if places and a.sparsity == b.sparsity and sum(things) <= 1:
            yield PointPair(a, b, tuple(places))


def _samples(
    places: Sequence[int], folders: Sequence[Path | None], figures: Mapping[str, str]
) -> tuple[dict[int, Mapping[str, Items]], dict[int, str]]:
    """(The items of the runs that have any, what is wrong with the files of others)."""
    samples, damaged = dict[int, Mapping[str, Items]](), dict[int, str]()
    for place in places:
        folder = folders[place]
        try:
            found = None if folder is None else read_samples(folder, figures)
        except ValueError as error:
            damaged[place] = str(error)
            continue
        if found is not None:
            samples[place] = found
    return samples, damaged


def _labels(pair: PointPair) -> list[str]:
    """What to call the two: where all else is alike, by the experts that went."""
    both = (pair.a, pair.b)
    if pair.a.label != pair.b.label:
        return [point.label for point in both]
    return [f"{point.label}, {100 * point.reports[0]['experts']['ratio']:.1f} % of the experts gone" for point in both]


def _p_values(
    key: str, pairs: Sequence[PointPair], samples: Mapping[int, Mapping[str, Items]], folders: Sequence[Path | None]
) -> list[float]:
    """Of one metric, for each pair; NaN where a run has no samples of it."""
    import numpy as np

    items = {place: found[key] for place, found in samples.items() if key in found}
    tested = [n for n, pair in enumerate(pairs) if all(place in items for both in pair.places for place in both)]
    p_values = [nan] * len(pairs)
    if not tested:
        return p_values
    places = {place for number in tested for both in pairs[number].places for place in both}
    check_same_items(key, {str(folders[place]): items[place] for place in sorted(places)})
    sides = (
        np.array([np.mean([items[both[side]].values for both in pairs[n].places], axis=0) for n in tested])
        for side in (0, 1)
    )
    for number, p in zip(tested, paired_p(*sides), strict=True):
        p_values[number] = float(p)
    return p_values


def _difference(key: str, pair: PointPair, reports: Sequence[RunReport]) -> Cell:
    metrics = [(reports[a]["metrics"], reports[b]["metrics"]) for a, b in pair.places]
    if not all(key in a and key in b for a, b in metrics):
        return Cell("-")
    return figure_cell(key, Measured(mean(a[key]["value"] - b[key]["value"] for a, b in metrics), None, None), "+")


def _p_cell(p: float) -> Cell:
    if p != p:
        return Cell("-")
    return Cell(f"<{SMALLEST}" if p < SMALLEST else f"{p:.3f}", p, bold=p < LEVEL)
