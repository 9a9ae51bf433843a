"""Points put in order for figures: by model, and in lines along one of the settings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from re import split
from typing import Any

from stun_exp.report.data.points import Point, points
from stun_exp.report.data.run_settings import RunReport

SPARSITY, RATIO = "sparsity", "expert_pruner.ratio"
"""The settings for what goes in total, and of the experts."""


@dataclass(frozen=True)
class Study:
    """The points of one model."""

    model: str
    methods: list[str]
    """Of all models."""
    points: list[Point]
    unpruned: Point | None
    several_ratios: bool
    """Whether a method was run with several expert ratios at one total sparsity."""


@dataclass(frozen=True)
class Group:
    """Points that differ in one setting alone, by what tells them from the others of a figure."""

    name: str
    points: list[Point]


def studies(reports: Sequence[RunReport]) -> list[Study]:
    """A study for each model, in the order of the reports; ValueError if two runs are the same."""
    by_model: dict[tuple[str, int], list[RunReport]] = {}
    for report in reports:
        by_model.setdefault((report["model"]["source"], report["model"]["params_before"]), []).append(report)
    of_models = [points(runs) for runs in by_model.values()]
    methods = list(dict.fromkeys(point.name for found in of_models for point in found if not point.is_unpruned))
    names = [split(r"[/:]", source)[-1] for source, _ in by_model]
    studies = []
    for (source, size), name, found in zip(by_model, names, of_models, strict=True):
        pruned = [point for point in found if not point.is_unpruned]
        unpruned = next((point for point in found if point.is_unpruned), None)
        places = {(point.name, point.sparsity, *point.settings.values()) for point in pruned}
        called = name if names.count(name) == 1 else f"{source} ({size:,} parameters)"
        studies.append(Study(called, methods, pruned, unpruned, len(places) < len(pruned)))
    return studies


def requested(point: Point, setting: str) -> Any:
    """The value of a setting that a point was run with; None for one that its method does not have."""
    if setting == SPARSITY:
        return point.sparsity
    if setting == RATIO:
        return point.reports[0]["settings"]["expert_pruner"].get("ratio", 0.0)
    return point.settings.get(setting)


def distinguishing_settings(points: Sequence[Point], *along: str) -> list[str]:
    """The settings, beside the name and `along`, that distinguish each two points.

    A setting that follows from those is none, such as an expert ratio that goes with the total sparsity.
    """
    known: list[tuple[Any, ...]] = [(point.name, *(requested(point, setting) for setting in along)) for point in points]
    found = []
    for setting in dict.fromkeys([SPARSITY, RATIO, *(name for point in points for name in point.settings)]):
        more = [(*before, requested(point, setting)) for before, point in zip(known, points, strict=True)]
        if len(set(more)) > len(set(known)):
            known = more
            found.append(setting)
    return found


def together(points: Sequence[Point], *along: str) -> list[Group]:
    """Points in groups along some settings, or one by one; a group's name says no more than tells the groups apart."""
    settings = distinguishing_settings(points, *along)
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault((point.name, *(requested(point, setting) for setting in settings)), []).append(point)
    alone = len({point.name for point in points}) == 1
    return [Group(_called(group[0], settings, alone), group) for group in groups.values()]


def at_most_common(points: Sequence[Point], setting: str) -> tuple[list[Point], list[Any]]:
    """(The points with that value of a setting that most have, or the largest of several such, the other values)."""
    values = [requested(point, setting) for point in points]
    chosen = max(values, key=lambda value: (values.count(value), value))
    return [p for p, value in zip(points, values, strict=True) if value == chosen], sorted(set(values) - {chosen})


def _called(point: Point, settings: Sequence[str], alone: bool) -> str:
    told = ", ".join(_told(point, settings))
    if not told:
        return point.name
    return told if alone else f"{point.name} ({told})"


def _told(point: Point, settings: Sequence[str]) -> Iterator[str]:
    for setting in settings:
        value = requested(point, setting)
        if setting == SPARSITY:
            yield f"{100 * value:g} %"
        elif setting == RATIO:
            yield f"experts {100 * value:g} %"
        elif value is not None:
            yield f"{setting}={value}"
