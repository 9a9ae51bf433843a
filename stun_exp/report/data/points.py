"""Runs gathered into points: one method under one choice of settings, over the seeds of its calibration text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, isfinite, sqrt
from statistics import mean, stdev
from typing import Any, NamedTuple

from stun_exp.report.data.run_settings import RunReport, flat_settings, identity, shown_settings

UNPRUNED = "unpruned"


class Measured(NamedTuple):
    """One metric of a point."""

    value: float
    """The mean over its seeds."""
    error: float | None
    """The standard error over the seeds (sd / sqrt n) or, of one seed, the benchmark's own, over its items."""
    noise: float | None
    """Both together. All seeds share the items, so more seeds make the second no smaller."""


@dataclass(frozen=True)
class Point:
    """The runs of one method under one choice of settings, a seed each in rising order."""

    name: str
    settings: Mapping[str, str]
    """Those that tell it from other points of its name (`shown_settings`), but for what its method does not have."""
    reports: tuple[RunReport, ...]
    places: tuple[int, ...]
    """Of those among all reports."""
    is_baseline: bool = False
    """Whether it is the unpruned model as measured beside a run."""

    @property
    def metrics(self) -> list[Mapping[str, Mapping[str, Any]]]:
        """Each run's, as `task/metric,filter`."""
        return [report["baseline"]["metrics"] if self.is_baseline else report["metrics"] for report in self.reports]

    @property
    def sparsity(self) -> float:
        """The requested one: points compete where it is equal."""
        return 0.0 if self.is_baseline else float(self.reports[0]["sparsity"]["target"])

    @property
    def ratio(self) -> float | None:
        """The requested share of experts; None without an expert stage."""
        return None if self.is_baseline else self.reports[0]["settings"]["expert_pruner"].get("ratio")

    @property
    def label(self) -> str:
        """The name, with the settings that tell it from others of that name."""
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name} ({settings})" if settings else self.name

    @property
    def is_unpruned(self) -> bool:
        """Whether nothing was done to the model."""
        return self.is_baseline or _untouched(self.reports[0])

    def measured(self, key: str) -> Measured | None:
        """The metric `key`; None if a run lacks it."""
        found = [metrics[key] for metrics in self.metrics if key in metrics]
        if len(found) < len(self.reports):
            return None
        values = [float(metric["value"]) for metric in found]
        known = [float(metric["stderr"]) for metric in found if metric["stderr"] is not None]
        own = [error for error in known if isfinite(error)]
        of_items = mean(own) if own else None
        spread = len(values) > 1 and all(map(isfinite, values))  # a perplexity may have exploded
        of_seeds = stdev(values) / sqrt(len(values)) if spread else None
        if len(values) > 1 and not spread:
            return Measured(mean(values), None, None)
        parts = [part for part in (of_items, of_seeds) if part is not None]
        return Measured(mean(values), of_items if of_seeds is None else of_seeds, hypot(*parts) if parts else None)


def points(reports: Sequence[RunReport]) -> list[Point]:
    """The points: unpruned first, then by rising sparsity, methods in the order given, settings in order.

    The unpruned model that was measured beside the runs is one of them, unless a run of its own has measured it.

    Raises:
        ValueError: Two runs are the same but for what moves no figure.
    """
    columns = shown_settings(reports)
    gathered: dict[str, dict[int, int]] = {}
    for place, report in enumerate(reports):
        by_seed = gathered.setdefault(identity(report), {})
        if report["seed"] in by_seed:
            raise ValueError(f"two runs are called {report['name']!r}, with equal settings and seed {report['seed']}")
        by_seed[report["seed"]] = place
    found = []
    for by_seed in gathered.values():
        places = tuple(place for _, place in sorted(by_seed.items()))
        flat = {} if _untouched(reports[places[0]]) else flat_settings(reports[places[0]])
        settings = {name: flat[key] for key, name in columns.items() if key in flat}
        found.append(Point(reports[places[0]]["name"], settings, tuple(reports[place] for place in places), places))
    names = list(dict.fromkeys(point.name for point in found))
    found.sort(key=lambda p: (not p.is_unpruned, p.sparsity, names.index(p.name), _settings_order(p)))
    measured = [place for place, report in enumerate(reports) if report.get("baseline")]
    if measured and not any(point.is_unpruned for point in found):
        found.insert(0, Point(UNPRUNED, {}, (reports[measured[0]],), (measured[0],), is_baseline=True))
    return found


def _untouched(report: RunReport) -> bool:
    pruned = report["sparsity"]["achieved"] or report["experts"]["ratio"]
    return not (pruned or report.get("recovery") or report.get("skipping"))


def _settings_order(point: Point) -> list[tuple[float, str]]:
    """Numbers by size, then text; what a table shows, and the share of experts that went."""

    def order(text: str) -> tuple[float, str]:
        try:
            return float(text), ""
        except ValueError:
            return float("inf"), text

    return [*(order(text) for text in point.settings.values()), (point.reports[0]["experts"]["ratio"], "")]
