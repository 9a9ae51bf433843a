"""What runs have in common, and where they are from: model, text, command, versions, commit, settings."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from stun_exp.report.data.read import ReportedRun
from stun_exp.report.data.run_settings import RunReport, flat_settings
from stun_exp.utils.json_files import read_regular

VERSIONS = ("torch", "transformers", "lm-eval")
"""Of the libraries that move figures; `report.json` has those of others too."""
REDUNDANCY = {
    "nearest_weight_cosine": "weights' cosine {:.2f}",
    "nearest_output_cosine": "outputs' {:.2f}",
    "nearest_router_distance": "router rows' distance {:.2f} of their length",
    "effective_experts": "{:.1f} effective experts a layer",
    "load_gini": "load Gini {:.2f}",
}
"""In the report -> how it is said."""
MOST_NAMED = 3
"""Values of one fact that are named before the rest is counted."""
SWEEP, RUN = "multirun.yaml", ".hydra/overrides.yaml"
"""Hydra's files with the command line of a sweep, and of a run."""
SWEEP_DEPTH = 2
"""Folders between a sweep's and a report's: that of the run, and that of one of its sparsities."""


def facts(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """What a reader has to know of runs before their figures; facts that no report states are left out."""
    reports = [run.report for run in runs]
    found = {
        "model": _several(_model(report) for report in reports),
        "redundancy": _several(_redundancy(report) for report in reports),
        "calibration": _several(_component(report, "calibration") for report in reports),
        "benchmarks": _several(_benchmarks(report) for report in reports),
        "command": _several(_commands(runs)),
        "pack's command": _several(_pack_command(report) for report in reports),
        "versions": _several(_versions(report) for report in reports),
        "commit": _several(report["provenance"].get("git_commit") for report in reports),
        "machine": _several(_machine(report) for report in reports),
        "reports written": _dates(runs),
    }
    return {name: value for name, value in found.items() if value}


def shared_settings(reports: Sequence[RunReport]) -> dict[str, str]:
    """For each part of a run, what all runs chose and set for it; parts that differ in all they have are left out."""
    each = [flat_settings(report) for report in reports]
    in_all = {key: value for key, value in each[0].items() if all(one.get(key) == value for one in each)}
    found: dict[str, list[str]] = {}
    for key, value in in_all.items():
        part, _, name = key.partition(".")
        if name != "_target_" and part not in ("method", "model", "calibration"):  # those two are facts
            found.setdefault(part, []).append(f"{name}={value}" if name else value)
    return {part: ", ".join(values) for part, values in found.items()}


def _several(values: Iterable[Any]) -> str:
    """The values that occur; the rest of many is counted."""
    known = list(dict.fromkeys(str(value) for value in values if value))
    more = len(known) - MOST_NAMED
    return "; ".join(known[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _model(report: RunReport) -> str:
    model, before = report["model"], report["experts"]["before"]
    experts = "/".join(map(str, sorted(set(before))))
    dtype = report["settings"].get("model", {}).get("dtype")
    told = [f"{model['params_before']:,} parameters", f"{len(before)} MoE layers of {experts} experts"]
    if not before:
        told[1] = "dense"
    return f"{model['source']}: {', '.join([*told, *([str(dtype)] if dtype else [])])}"


def _redundancy(report: RunReport) -> str | None:
    """How alike the unpruned model's experts are, of a run that measured it."""
    found = report.get("redundancy") or {}
    told = [form.format(found[name]) for name, form in REDUNDANCY.items() if found.get(name) is not None]
    return f"experts and the nearest other: {', '.join(told)}" if told else None


def _component(report: RunReport, group: str) -> str:
    """A group's choice and its settings."""
    settings = {key: value for key, value in flat_settings(report).items() if key.partition(".")[0] == group}
    values = [f"{key.partition('.')[2]}={v}" for key, v in settings.items() if "." in key and "_target_" not in key]
    return ", ".join([*([settings[group]] if group in settings else []), *values])


def _benchmarks(report: RunReport) -> str:
    evaluation = report["settings"]["eval"]
    told = [f"{one['task']} ({one['num_fewshot']} shots)" for one in evaluation.get("benchmarks", {}).values()]
    limit = evaluation.get("limit")
    return ", ".join([*told, *([f"eval.limit={limit:g}"] if limit is not None else [])])


def _versions(report: RunReport) -> str:
    versions = report["provenance"]["versions"]
    return ", ".join(f"{name} {versions[name]}" for name in VERSIONS if name in versions)


def _machine(report: RunReport) -> str:
    provenance = report["provenance"]
    threads = f"{provenance['threads']} threads" if provenance.get("threads") else None
    return ", ".join(str(part) for part in (provenance.get("device"), provenance.get("processor"), threads) if part)


def _dates(runs: Sequence[ReportedRun]) -> str:
    """From the first to the last day, by the files; lists of reports do not say."""
    files = [run.folder / "report.json" for run in runs if run.folder is not None]
    days = sorted({f"{datetime.fromtimestamp(file.stat().st_mtime, UTC):%Y-%m-%d}" for file in files if file.is_file()})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else ""


def _commands(runs: Sequence[ReportedRun]) -> Iterator[str]:
    """The command lines that started the runs or their sweeps, as Hydra noted them; lists of reports have none."""
    noted = dict.fromkeys(file for run in runs if run.folder is not None for file in _noted(run.folder))
    for file in noted:
        if overrides := _overrides(file):
            yield shlex.join(["stun", *(["-m"] if file.name == SWEEP else []), *overrides])


def _pack_command(report: RunReport) -> str | None:
    pack = report.get("choices", {}).get("experiment")
    return shlex.join(["stun", "-m", f"experiment={pack}"]) if isinstance(pack, str) else None


def _noted(folder: Path) -> Iterator[Path]:
    """Where the command line of a sweep is noted or, of a run alone, its own."""
    above = [folder, *folder.parents][: SWEEP_DEPTH + 1]
    files = [place / SWEEP for place in above] + [place / RUN for place in above]
    yield from [file for file in files if file.is_file()][:1]


def _overrides(file: Path) -> list[str]:
    """What a command line set; nothing where the file cannot be read."""
    try:
        content = yaml.safe_load(read_regular(file).decode())
        overrides = content["hydra"]["overrides"]["task"] if file.name == SWEEP else content
    except (OSError, ValueError, RecursionError, LookupError, TypeError, yaml.YAMLError):
        return []
    return [str(one) for one in overrides] if isinstance(overrides, list) else []
