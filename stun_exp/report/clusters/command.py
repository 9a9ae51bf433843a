"""`stun-clusters FOLDER`: figures and numbers of how experts were clustered, from the clusters.json of runs.

Each run's figures lie beside its clusters.json; agreement.json and, over seeds, stability.png in FOLDER.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from statistics import mean
from typing import Any

from stun_exp.cli.interrupts import stoppable
from stun_exp.utils.files import write_file
from stun_exp.utils.json_files import read_json, read_regular

Clusters = Sequence[Sequence[int]]

LABORATORY = "run with expert_pruner.laboratory=true"


@dataclass(frozen=True)
class ClusteredRun:
    """One clusters.json."""

    name: str
    folder: Path
    settings: dict[str, Any]
    layers: list[dict[str, Any]]


@stoppable()
def main(argv: Sequence[str] | None = None) -> None:
    """Draws what can be drawn of a folder, says what cannot and why; exits with 1 if there is nothing."""
    parser = argparse.ArgumentParser(prog="stun-clusters", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run's folder, or a sweep's")
    folder = parser.parse_args(argv).folder
    try:
        runs = read_runs(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    for line in (*draw(runs, folder), *write_agreement(runs, folder)):
        print(line)


def read_runs(folder: Path) -> list[ClusteredRun]:
    """Every clustered run in a folder, by name; ValueError if there is none."""
    files = sorted(folder.rglob("clusters.json"))
    if not files:
        raise ValueError(f"{folder}: no clusters.json in it; give the folder of a run or sweep with expert_pruner=stun")
    runs = []
    for file in files:
        name = file.parent.relative_to(folder).as_posix()
        content = json.loads(read_regular(file))
        runs.append(
            ClusteredRun(
                folder.resolve().name if name == "." else name, file.parent, content["settings"], content["layers"]
            )
        )
    return runs


def adjusted_rand_index(one: Clusters, other: Clusters) -> float:
    """How far two clusterings agree: 1 if equal, 0 on average by chance at these cluster sizes (Hubert, Arabie 1985).

    Two clusterings that leave chance no choice, all experts single or all together, are equal and agree fully.
    """
    total = comb(sum(map(len, one)), 2)
    both = sum(comb(len(set(a) & set(b)), 2) for a in one for b in other)
    in_one, in_other = (sum(comb(len(cluster), 2) for cluster in clusters) for clusters in (one, other))
    expected = in_one * in_other / max(total, 1)
    most = (in_one + in_other) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def agreement(run: ClusteredRun) -> list[dict[str, Any]]:
    """For each layer, the index between each two similarities' clusters, all at the run's number of clusters."""
    return [
        {"layer": layer["layer"]}
        | {
            f"{one}-{other}": adjusted_rand_index(layer["alone"][one], layer["alone"][other])
            for one, other in combinations(_known(layer), 2)
        }
        for layer in run.layers
    ]


def repeated(runs: Sequence[ClusteredRun]) -> list[list[ClusteredRun]]:
    """Groups of two or more runs with equal settings of the pruner and equal layers, as those of several seeds have."""
    groups: dict[str, list[ClusteredRun]] = {}
    for run in runs:
        shape = [(layer["layer"], layer["num_experts"]) for layer in run.layers]
        groups.setdefault(json.dumps([run.settings, shape], sort_keys=True), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def stability(group: Sequence[ClusteredRun]) -> list[dict[str, Any]]:
    """For each layer, the mean index over pairs of runs: of their clusters, and of each similarity's alone."""
    rows = []
    for layers in zip(*(run.layers for run in group), strict=True):
        row = {"layer": layers[0]["layer"], "clusters": _mean_index([layer["clusters"] for layer in layers])}
        for name in _known(layers[0]):
            if all(layer["alone"][name] is not None for layer in layers):
                row[name] = _mean_index([layer["alone"][name] for layer in layers])
        rows.append(row)
    return rows


def write_agreement(runs: Sequence[ClusteredRun], folder: Path) -> list[str]:
    """Writes agreement.json; what was written."""
    content = {
        "runs": [{"run": run.name, "layers": agreement(run)} for run in runs],
        "stability": [{"runs": [run.name for run in group], "layers": stability(group)} for group in repeated(runs)],
    }
    file = folder / "agreement.json"
    if file.is_symlink() or (file.exists() and not _is_agreement(file)):
        return [f"{file}: not written, a file that stun-clusters has not written is there; move it away"]
    write_file(file, [(json.dumps(content, indent=1) + "\n").encode()])
    return [f"wrote {file}"]


def _is_agreement(file: Path) -> bool:
    """Whether a file has what is written as agreement.json: nothing else is written over."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() == {"runs", "stability"}


def draw(runs: Sequence[ClusteredRun], folder: Path) -> list[str]:
    """Draws every figure that the runs have the numbers for; a line for each, with the reason if it is left out."""
    from stun_exp.report.clusters import figures

    said = []
    for run in runs:
        merged = any(layer["within"] for layer in run.layers)
        measured = all(layer["gate_mass"] for layer in run.layers)
        compared = all(len(_known(layer)) > 1 for layer in run.layers)
        plans: list[tuple[str, Callable[[ClusteredRun, Path], None], str]] = [
            ("dendrograms", figures.dendrograms, "" if any(layer["pairs"] for layer in run.layers) else "no merges"),
            ("experts_kept", figures.experts_kept, ""),
            ("cluster_sizes", figures.cluster_sizes, ""),
            ("within_cluster_distance", figures.within_cluster_distance, "" if merged else "no experts were merged"),
            ("mass_moved", figures.mass_moved, "" if measured else f"gates were not measured; {LABORATORY}"),
            ("agreement", _draw_agreement, "" if compared else f"no two similarities were compared; {LABORATORY}"),
        ]
        for name, figure, lacking in plans:
            file = run.folder / f"{name}.png"
            if lacking and figures.is_ours(file):
                file.unlink()  # of an earlier run in this folder
            lacking = lacking or _in_the_way(file)
            if not lacking:
                figure(run, file)
            said.append(f"{file}: not drawn, {lacking}" if lacking else f"wrote {file}")
    groups = repeated(runs)
    for number, group in enumerate(groups):
        file = folder / ("stability.png" if len(groups) == 1 else f"stability-{number}.png")
        names = ", ".join(run.name for run in group)
        if why := _in_the_way(file):
            said.append(f"{file}: not drawn, {why}")
            continue
        figures.indices(stability(group), f"agreement between runs {names}, of equal settings", file)
        said.append(f"wrote {file}")
    return said


def _in_the_way(file: Path) -> str:
    """Why a figure cannot be drawn into a file, "" if it can: somebody's file is there."""
    from stun_exp.report.clusters.figures import is_ours

    is_there = file.is_symlink() or file.exists()
    return "a file that stun-clusters has not drawn is there; move it away" if is_there and not is_ours(file) else ""


def _draw_agreement(run: ClusteredRun, file: Path) -> None:
    from stun_exp.report.clusters.figures import indices

    indices(agreement(run), f"run {run.name}: agreement of clusters by one similarity each", file)


def _known(layer: dict[str, Any]) -> list[str]:
    """The similarities that were clustered alone."""
    return [name for name, clusters in layer["alone"].items() if clusters is not None]


def _mean_index(clusterings: Sequence[Clusters]) -> float:
    return mean(adjusted_rand_index(one, other) for one, other in combinations(clusterings, 2))
