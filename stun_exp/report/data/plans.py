"""Which settings gave which expert plans: one line for each choice of what decides a plan, and how far plans agree."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NotRequired

from pydantic import TypeAdapter

from stun_exp.config.settings import since
from stun_exp.report.clusters.runs import adjusted_rand_index
from stun_exp.report.data.forms import OpenForm
from stun_exp.report.data.points import points
from stun_exp.report.data.read import ReportedRun
from stun_exp.report.data.run_settings import RunReport, flat_settings, shown_settings
from stun_exp.utils.arrays import read_arrays
from stun_exp.utils.correlation import rank_correlation
from stun_exp.utils.json_files import read_json

if TYPE_CHECKING:
    import numpy as np

DECIDING = since("open") | since("experts")
"""The settings that can move a plan, besides the seed."""
RATIO = "expert_pruner.ratio"


@dataclass(frozen=True)
class PlannedRun:
    """Runs of one choice of what decides the plan, all with that plan."""

    names: tuple[str, ...]
    settings: Mapping[str, str]
    """What tells it from the others, by the names of columns."""
    report: RunReport
    """Of the first of them."""
    folder: Path | None
    """Of that run, if it is known."""

    @property
    def stage(self) -> Mapping[str, Any]:
        """The report's block of the expert stage."""
        found: Mapping[str, Any] = self.report["expert_stage"]
        return found

    @property
    def plan_id(self) -> str:
        return str(self.stage["plan_id"])

    @property
    def label(self) -> str:
        """The name, with the settings that tell it from others."""
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        name = ", ".join(self.names)
        return f"{name} ({settings})" if settings else name

    @cached_property
    def files(self) -> "PlanFiles | None":
        """What the run left of its plan; None without its folder, or if it is damaged."""
        return None if self.folder is None else read_plan_files(self.folder)


class LayerPlanForm(OpenForm):
    """What is needed of a layer in plan.json."""

    layer: int
    num_experts: int
    groups: list[list[int]]
    kept: list[int]
    clusters: NotRequired[list[list[int]] | None]


_LAYERS = TypeAdapter(list[LayerPlanForm])


@dataclass(frozen=True)
class PlanFiles:
    """A plan as its run left it: by layer the experts kept, the clusters, and the distances that were clustered."""

    kept: Mapping[int, frozenset[int]]
    clusters: Mapping[int, list[list[int]]]
    """Of layers in which each expert has one."""
    distances: "Mapping[str, np.ndarray]"
    """Of all pairs; of methods that leave them."""


def read_plan_files(folder: Path) -> PlanFiles | None:
    """The plan in a run's folder; None if there is none that can be read."""
    try:
        layers = _LAYERS.validate_python(read_json(folder / "plan.json")["layers"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not layers:
        return None
    clusters = {layer["layer"]: layer.get("clusters") or layer["groups"] for layer in layers}
    whole = {layer["layer"] for layer in layers if _is_whole(clusters[layer["layer"]], layer["num_experts"])}
    return PlanFiles(
        {layer["layer"]: frozenset(layer["kept"]) for layer in layers},
        {index: found for index, found in clusters.items() if index in whole},
        _distances(folder / "distances.npz"),
    )


def planned_runs(runs: Sequence[ReportedRun]) -> list[PlannedRun]:
    """One for each choice of what decides a plan, in the order of a table; none of runs that took no experts.

    Runs that differ in what comes after the expert stage alone are one, as long as they have one plan.
    """
    runs = [run for run in runs if run.report.get("expert_stage")]
    reports = [run.report for run in runs]
    columns = {key: name for key, name in shown_settings(reports).items() if _decides(key)}
    flat = [flat_settings(report) | {"seed": str(report["seed"])} for report in reports]
    columns |= {key: key.rpartition(".")[2] for key in (RATIO, "seed") if len({one.get(key) for one in flat}) > 1}
    gathered: dict[str, list[int]] = {}
    for place in (place for point in points(reports) if not point.is_baseline for place in point.places):
        deciding = [(key, value) for key, value in flat[place].items() if _decides(key) and key != "method"]
        by = [sorted(deciding), reports[place]["expert_stage"]["plan_id"]]
        gathered.setdefault(json.dumps(by), []).append(place)
    found = []
    for first, *others in gathered.values():
        names = dict.fromkeys(reports[place]["name"] for place in (first, *others))
        settings = {name: flat[first][key] for key, name in columns.items() if key in flat[first]}
        found.append(PlannedRun(tuple(names), settings, reports[first], runs[first].folder))
    return found


def equal_plans(runs: Sequence[PlannedRun]) -> Iterator[list[PlannedRun]]:
    """Those that have one plan, whatever their settings."""
    by_plan: dict[str, list[PlannedRun]] = {}
    for run in runs:
        by_plan.setdefault(run.plan_id, []).append(run)
    yield from (equal for equal in by_plan.values() if len(equal) > 1)


def kept_in_common(one: PlannedRun, other: PlannedRun) -> float | None:
    """Share of the kept experts that both keep, of those of the one that keeps more; None if that is not known."""
    if one.plan_id == other.plan_id:
        return 1.0
    if one.files is None or other.files is None or one.files.kept.keys() != other.files.kept.keys():
        return None
    pairs = [(kept, other.files.kept[layer]) for layer, kept in one.files.kept.items()]
    most = max(sum(len(kept) for kept in side) for side in zip(*pairs, strict=True))
    return sum(len(a & b) for a, b in pairs) / max(most, 1)


def cluster_agreement(one: PlannedRun, other: PlannedRun) -> float | None:
    """The adjusted Rand index, mean over the layers; None where one has no clusters, or experts in none."""
    if one.files is None or other.files is None:
        return None
    ours, theirs = one.files.clusters, other.files.clusters
    if not ours or ours.keys() != theirs.keys() or ours.keys() != one.files.kept.keys():
        return None
    if any(sum(map(len, ours[layer])) != sum(map(len, theirs[layer])) for layer in ours):
        return None
    return mean(adjusted_rand_index(ours[layer], theirs[layer]) for layer in ours)


def distance_correlation(one: PlannedRun, other: PlannedRun) -> float | None:
    """Spearman's correlation of the distances that were clustered, mean over the layers; None where one has none."""
    if one.files is None or other.files is None:
        return None
    ours, theirs = one.files.distances, other.files.distances
    if ours.keys() != theirs.keys() or any(ours[layer].shape != theirs[layer].shape for layer in ours):
        return None
    found = [rank_correlation(ours[layer], theirs[layer]) for layer in ours]
    known = [value for value in found if value is not None]
    return mean(known) if known else None


def in_words(runs: Sequence[PlannedRun]) -> str:
    """How many plans the runs have, and which settings change them."""
    plans = len({run.plan_id for run in runs})
    several = len({run.names for run in runs}) > 1
    rows = [({**({"method": ", ".join(run.names)} if several else {}), **run.settings}, run.plan_id) for run in runs]
    names = list(dict.fromkeys(name for settings, _ in rows for name in settings))
    effects = [effect for name in names if (effect := _effect(name, names, rows))]
    counted = f"{len(runs)} settings, {plans} plan{'s' * (plans > 1)}"
    return f"{counted}: {'; '.join(effects)}." if effects else f"{counted}."


def _effect(name: str, names: Sequence[str], rows: Sequence[tuple[Mapping[str, str], str]]) -> str:
    """What a setting does where all others are equal, "" if no two runs say."""
    groups: dict[tuple[str | None, ...], dict[str, str]] = {}
    others = [other for other in names if other != name]
    for settings, plan in rows:
        if name in settings:
            groups.setdefault(tuple(settings.get(other) for other in others), {})[settings[name]] = plan
    verdicts = {at: _verdict(group) for at, group in groups.items() if len(group) > 1}
    told = list(dict.fromkeys(verdicts.values()))
    if len(told) < 2:
        return f"{name} {told[0]}" if told else ""
    for place, other in enumerate(others):
        at: dict[str, list[str]] = {verdict: [] for verdict in told}
        for values, verdict in verdicts.items():
            at[verdict] += [str(values[place])] * (str(values[place]) not in at[verdict])
        if len({value for values in at.values() for value in values}) == sum(map(len, at.values())):
            return f"{name} " + ", ".join(f"{verdict} at {other}={' and '.join(at[verdict])}" for verdict in told)
    changed = sum(len(set(groups[values].values())) > 1 for values in verdicts)
    return f"{name} changes the plan in {changed} of {len(verdicts)} comparisons"


def _verdict(plan_of: Mapping[str, str]) -> str:
    """What a setting does, from the plan that each of its values gives."""
    together: dict[str, list[str]] = {}
    for value, plan in plan_of.items():
        together.setdefault(plan, []).append(value)
    if len(together) == 1:
        return "changes nothing"
    equal = [" and ".join(values) for values in together.values() if len(values) > 1]
    return "changes the plan" + (f" (but {'; '.join(equal)} give one)" if equal else "")


def _decides(key: str) -> bool:
    return key.partition(".")[0] in {*DECIDING, "method", "seed"}


def _is_whole(clusters: list[list[int]], num_experts: int) -> bool:
    """Whether each expert of the layer is in one cluster."""
    members = sorted(expert for cluster in clusters for expert in cluster)
    return len(members) == num_experts and members == list(range(len(members)))


def _distances(file: Path) -> "dict[str, np.ndarray]":
    """The arrays in a file, none if it is not there or damaged."""
    import numpy as np

    try:
        found = read_arrays(file)
    except (OSError, ValueError):
        return {}
    return found if all(d.dtype == np.float32 and d.ndim == 1 and np.isfinite(d).all() for d in found.values()) else {}
