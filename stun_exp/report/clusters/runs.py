"""How experts of runs were clustered, from their clusters.json, and how far clusterings agree."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from stun_exp.utils.json_files import read_regular

Clusters = Sequence[Sequence[int]]
"""The experts of a layer, each in one cluster."""
REMOVED_SHARES = [0.05 * step for step in range(1, 20)]
"""Shares of experts removed that `kept_by_budget` looks up."""


@dataclass(frozen=True)
class ClusteredRun:
    """One clusters.json."""

    name: str
    folder: Path
    settings: dict[str, Any]
    layers: list[dict[str, Any]]


def read_clustered_runs(folder: Path) -> list[ClusteredRun]:
    """Every clustered run in a folder, by name; ValueError if there is none."""
    files = sorted(folder.rglob("clusters.json"))
    if not files:
        raise ValueError(f"{folder}: no clusters.json in it; give the folder of a run or sweep with expert_pruner=stun")
    runs = []
    for file in files:
        relative = file.parent.relative_to(folder).as_posix()
        name = folder.resolve().name if relative == "." else relative
        content = json.loads(read_regular(file))
        runs.append(ClusteredRun(name, file.parent, content["settings"], content["layers"]))
    return runs


def adjusted_rand_index(one: Clusters, other: Clusters) -> float:
    """How far two clusterings of a layer agree: 1 if equal, 0 on average by chance at these cluster sizes.

    Two clusterings that leave chance no choice, all experts single or all together, are equal and agree fully.
    Hubert and Arabie 1985, as scikit-learn has it.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(_labels(one), _labels(other)))


def agreement(run: ClusteredRun) -> list[dict[str, Any]]:
    """For each layer, the index between each two similarities' clusters, all at the run's number of clusters."""
    return [
        {"layer": layer["layer"]}
        | {
            f"{one}-{other}": adjusted_rand_index(layer["alone"][one], layer["alone"][other])
            for one, other in combinations(similarities(layer), 2)
        }
        for layer in run.layers
    ]


def correlations(run: ClusteredRun) -> list[dict[str, Any]]:
    """For each layer, Spearman's correlation between each two kinds of distance; `distance` is the one clustered."""
    return [{"layer": layer["layer"], **layer.get("correlation", {})} for layer in run.layers]


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
        for name in similarities(layers[0]):
            if all(layer["alone"][name] is not None for layer in layers):
                row[name] = _mean_index([layer["alone"][name] for layer in layers])
        rows.append(row)
    return rows


def similarities(layer: dict[str, Any]) -> list[str]:
    """Those by which a layer was clustered alone."""
    return [name for name, clusters in layer["alone"].items() if clusters is not None]


def kept_by_budget(run: ClusteredRun) -> tuple[list[float], list[list[int]]]:
    """Experts kept under one threshold for all layers, looked up on the paths of merges.

    Returns:
        The shares of experts removed that leave each layer enough, and by layer the experts kept at each share.
    """
    total = sum(layer["num_experts"] for layer in run.layers)
    removable = sum(_most_merges(layer) for layer in run.layers)
    shares = [share for share in REMOVED_SHARES if round(share * total) <= removable]
    removed = [_removed_under_one_threshold(run.layers, round(share * total)) for share in shares]
    return shares, [
        [layer["num_experts"] - counts[place] for counts in removed] for place, layer in enumerate(run.layers)
    ]


def _removed_under_one_threshold(layers: Sequence[dict[str, Any]], num_removed: int) -> list[int]:
    """Experts that each layer loses: the lowest merges of the model, as heights never fall within a layer.

    Groups of experts lose equally many, so a step is a merge in each. Equal heights go by layer, then by order.
    """
    steps = sorted(
        (layer["heights"][step], place, step)
        for place, layer in enumerate(layers)
        for step in range(0, _most_merges(layer), layer["stride"])
    )
    removed, left = [0] * len(layers), num_removed
    for _, place, _ in steps:
        stride = layers[place]["stride"]
        if 2 * left <= stride:
            break  # as near without this step as with it, or nearer
        removed[place] += stride
        left -= stride
    return removed


def _most_merges(layer: dict[str, Any]) -> int:
    """Merges that whole steps can make and leave a layer enough experts."""
    spare = max(layer["num_experts"] - layer["min_experts"], 0)
    return int(spare // layer["stride"] * layer["stride"])


def _labels(clusters: Clusters) -> list[int]:
    """The cluster of each expert, experts in order."""
    cluster_of = {expert: number for number, cluster in enumerate(clusters) for expert in cluster}
    return [cluster_of[expert] for expert in sorted(cluster_of)]


def _mean_index(clusterings: Sequence[Clusters]) -> float:
    return mean(adjusted_rand_index(one, other) for one, other in combinations(clusterings, 2))
