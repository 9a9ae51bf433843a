"""clusters.json: how a layer's clusters came about, and what each similarity alone would have made of it.

Shapes: E experts of a layer, D hidden size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from stun_exp.expert_pruner.stun.cut import Cut, fewest_clusters
from stun_exp.expert_pruner.stun.linkage import Linkage, merge_path
from stun_exp.expert_pruner.stun.similarity import row_distance
from stun_exp.moe.observe import Statistic, one
from stun_exp.moe.plan import LayerPlan
from stun_exp.moe.statistics import Coactivation, MeanOutputs

if TYPE_CHECKING:
    from stun_exp.expert_pruner.stun.finding import Finding


def distances_alone(router_rows_ED: Tensor, statistics: Sequence[Statistic]) -> dict[str, np.ndarray | None]:
    """By similarity, (E, E) distances; None for coactivation if no two experts were ever active together."""
    count_EE = one(Coactivation, statistics).count_EE.numpy()
    return {
        "router": row_distance(router_rows_ED),
        "coactivation": -count_EE if count_EE.any() else None,
        "outputs": row_distance(one(MeanOutputs, statistics).mean_ED()),
    }


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
    }
