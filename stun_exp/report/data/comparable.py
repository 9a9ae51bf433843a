"""Which runs may stand in one table, and what keeps others out of it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from stun_exp.report.data.differences import (
    differing_between_rows,
    unequal,
    unequal_layers,
    unequal_tokens,
    unequal_within_rows,
)
from stun_exp.report.data.read import ReportedRun
from stun_exp.report.data.run_settings import RunReport, identity


@dataclass(frozen=True)
class ComparableSet:
    """Runs of one model, measured by the same benchmarks in the same way."""

    heading: str
    runs: list[ReportedRun]
    repeated: list[str]
    """Runs that were left out, because the same run is there already."""
    notes: tuple[str, ...] = ()
    """What may have moved figures between its rows, and is no reason to refuse them."""

    @property
    def reports(self) -> list[RunReport]:
        return [run.report for run in self.runs]


def comparable_sets(runs: Sequence[ReportedRun]) -> list[ComparableSet]:
    """The runs in sets that may each have a table: one for each model, and for each way to measure it.

    Raises:
        ValueError: Something would spoil a comparison within a set without being seen; all of it is named at once.
            Another scope, limit, batch size, backend or lm-eval; of a benchmark other versions, shots or numbers of
            items; other calibration tokens with the same seed, unless a setting of the calibration tells them apart in
            a column of its own; other figures for a run that is otherwise the same; another number of layers; and
            within a row other code or libraries.
    """
    together: dict[tuple[str, str, str], list[ReportedRun]] = {}
    for run in runs:
        together.setdefault(_kind(run.report), []).append(run)
    sets, refusals = [], []
    for kind, members in together.items():
        heading = _heading(kind, list(together))
        repeated, doubtful = _repeats(members)
        kept = [run for run in members if run.where not in repeated]
        found = [*doubtful, *unequal(kept), *unequal_layers(kept), *unequal_tokens(kept), *unequal_within_rows(members)]
        refusals += [f"{heading}: {what}" for what in found]
        sets.append(ComparableSet(heading, kept, repeated, tuple(differing_between_rows(kept))))
    if refusals:
        lines = "".join(f"\n  {line}" for line in refusals)
        raise ValueError(f"runs that cannot stand in one table; give only those that agree:{lines}")
    return sets


def _kind(report: RunReport) -> tuple[str, str, str]:
    """Model, size, and benchmarks with their settings: where these differ, the runs have tables of their own."""
    model = report["model"]
    return str(model["source"]), f"{model['params_before']:,} parameters", json.dumps(_benchmarks(report))


def _benchmarks(report: RunReport) -> list[str]:
    """What each benchmark measures, for a heading."""
    found = report["settings"]["eval"].get("benchmarks", {}).values()
    return sorted(f"{b['task']} ({b['num_fewshot']} shots, {b['metric']})" for b in found)


def _heading(kind: tuple[str, str, str], kinds: Sequence[tuple[str, str, str]]) -> str:
    """The model, and what tells the set from the model's other sets."""
    source, size, benchmarks = kind
    others = [other for other in kinds if other[0] == source]
    parts = [source]
    if len({other[1] for other in others}) > 1:
        parts.append(size)
    if len({other[2] for other in others}) > 1:
        in_all = set.intersection(*(set(json.loads(other[2])) for other in others))
        parts.append(", ".join(b for b in json.loads(benchmarks) if b not in in_all) or "no other benchmark")
    return "; ".join(parts)


def _repeats(runs: Sequence[ReportedRun]) -> tuple[list[str], list[str]]:
    """Runs that are there already, and those that should be the same as another and have other figures."""
    first: dict[tuple[str, int], ReportedRun] = {}
    repeated, doubtful = [], []
    for run in runs:
        earlier = first.setdefault((identity(run.report), run.report["seed"]), run)
        if earlier is run:
            continue
        if earlier.report["metrics"] == run.report["metrics"]:
            repeated.append(run.where)
        else:
            doubtful.append(f"{earlier.where} and {run.where} have equal settings, and other figures")
            repeated.append(run.where)
    return repeated, doubtful
