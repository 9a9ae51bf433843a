"""clusters.json: how a layer's clusters came about, and what each similarity alone would have made of it.

distances.npz beside it has the distances that were clustered.

Shapes: E experts of a layer, P pairs of them, D hidden size.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from stun_exp.expert_pruner.stun.cut import Cut, fewest_clusters
from stun_exp.expert_pruner.stun.linkage import Linkage, merge_path
from stun_exp.expert_pruner.stun.similarity import row_distance
from stun_exp.moe.observe import Statistic, one
from stun_exp.moe.plan import LayerPlan
from stun_exp.moe.statistics import Coactivation, MeanOutputs
from stun_exp.utils.arrays import packed
from stun_exp.utils.correlation import rank_correlation

if TYPE_CHECKING:
    from stun_exp.expert_pruner.stun.finding import Finding


def distances_alone(
    router_rows_ED: Tensor, statistics: Sequence[Statistic], weights_EE: np.ndarray | None
) -> dict[str, np.ndarray | None]:
    """By similarity, (E, E) distances; None for coactivation if no two experts were ever active together."""
    count_EE = one(Coactivation, statistics).count_EE.numpy()
    return {
        "router": row_distance(router_rows_ED),
        "coactivation": -count_EE if count_EE.any() else None,
        "outputs": row_distance(one(MeanOutputs, statistics).mean_ED()),
        "weights": weights_EE,
    }


def distances_npz(findings: "Sequence[Finding]") -> str:
    """The file in base64: of each layer, by its number, the distances of all pairs in fp32, row after row."""
    layers = {str(found.layer.index): _pairs(found.distance_EE).astype(np.float32) for found in findings}
    return b64encode(packed(layers)).decode()


def clusters_json(
    settings: dict[str, Any], findings: "Sequence[Finding]", cuts: Sequence[Cut], plans: Sequence[LayerPlan]
) -> tuple[dict[str, Any], list[str]]:
    """The document, and a warning for each layer in which a similarity could not be had."""
    # The official rule cannot make any number of clusters.
    method: Linkage = "complete" if settings["linkage"] == "official" else settings["linkage"]
    limit = settings["max_removed_per_layer"]
    layers = [_layer(method, limit, *each) for each in zip(findings, cuts, plans, strict=True)]
    lacking = [
        f"layer {layer['layer']}: clusters.json has no clusters by {name}: no two experts were ever active together"
        for layer in layers
        for name, clusters in layer["alone"].items()
        if clusters is None
    ]
    return {"settings": settings, "alone_linkage": method, "layers": layers}, lacking


def _layer(method: Linkage, limit: int | None, found: "Finding", cut: Cut, plan: LayerPlan) -> dict[str, Any]:
    clusters, groups = cut.clusters, found.layer.num_groups
    within = np.concatenate(
        [found.distance_EE[np.ix_(c, c)][np.triu_indices(len(c), 1)] for c in clusters] or [np.empty(0)]
    )
    gate_E, moved = None, None
    if found.activity is not None:
        gate_E = (found.activity.gate_E / found.activity.gate_E.sum()).tolist()
        moved = sum(mass for expert, mass in enumerate(gate_E) if expert not in plan.kept)
    return {
        "layer": plan.layer,
        "num_experts": plan.num_experts,
        "min_experts": fewest_clusters(found.layer, limit),
        "stride": groups,
        "pairs": cut.path.pairs,
        "heights": cut.path.heights,
        "threshold": cut.threshold,
        "clusters": clusters,
        "kept": plan.kept,
        "sizes": sorted(map(len, clusters), reverse=True),
        "within": {"mean": float(within.mean()), "max": float(within.max())} if len(within) else None,
        "gate_mass": gate_E,
        "mass_moved": moved,
        "alone": {
            name: None if d is None else merge_path(d, method, groups).clusters(cut.num_merges)
            for name, d in found.alone.items()
        },
        "correlation": _correlations({"distance": found.distance_EE, **found.alone}) if found.alone else {},
    }


def _correlations(distances: Mapping[str, np.ndarray | None]) -> dict[str, float | None]:
    """Spearman's, over pairs of experts, between each two kinds of distance; None where one says nothing."""
    known = {name: None if d is None else _pairs(d) for name, d in distances.items()}
    return {
        f"{one}-{other}": None if a is None or b is None else rank_correlation(a, b)
        for (one, a), (other, b) in combinations(known.items(), 2)
    }


def _pairs(distance_EE: np.ndarray) -> np.ndarray:
    """The distances of all pairs, (P,): what is above the diagonal."""
    return distance_EE[np.triu_indices(len(distance_EE), 1)]
