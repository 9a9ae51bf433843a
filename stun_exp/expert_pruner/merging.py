"""What the merging pruners share: the plan that makes one expert of each cluster, and distances by cosine.

Shapes: E experts of a layer.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from stun_exp.expert_pruner.protocol import ExpertSource
from stun_exp.expert_pruner.scores import unreached_warnings
from stun_exp.moe.plan import LayerPlan, Plan


def merge(layer: ExpertSource, clusters: Sequence[Sequence[int]], count_E: Tensor, *, aligned: bool) -> LayerPlan:
    """The plan that merges each cluster, its members weighted by the tokens routed to them.

    The member with the most tokens represents the cluster, of equal ones the lower index. Without any token all members
    count alike.
    """
    count: list[int] = count_E.tolist()
    by_kept = sorted((max(sorted(cluster), key=lambda e: count[e]), sorted(cluster)) for cluster in clusters)
    groups = [group for _, group in by_kept]
    weights = []
    for group in groups:
        total = sum(count[expert] for expert in group)
        weights.append([count[expert] / total if total else 1 / len(group) for expert in group])
    kept = [expert for expert, _ in by_kept]
    return LayerPlan(layer.index, layer.num_experts, groups, kept, weights, aligned, {"tokens": count})


def merged(layers: list[LayerPlan]) -> Plan:
    """The plan of all layers, with a warning where an expert that no calibration token reached is merged."""
    in_clusters = {plan.layer: {e for group in plan.groups if len(group) > 1 for e in group} for plan in layers}
    unreached = {p.layer: sorted(e for e in in_clusters[p.layer] if p.facts["tokens"][e] == 0) for p in layers}
    return Plan(layers, unreached_warnings(unreached, "no weight when merged with experts that have tokens"))


def cosine_distance(gram_EE: Tensor) -> np.ndarray:
    """1 - cosine between vectors given by their inner products, (E, E), diagonal 0; a vector of zeros is 1 from all."""
    gram_EE = gram_EE.double()
    norm_E = gram_EE.diagonal().sqrt()
    product_EE = norm_E[:, None] * norm_E
    cosine_EE = (gram_EE / product_EE.where(product_EE > 0, 1.0)).clamp(-1, 1)
    return np.asarray((1 - cosine_EE).fill_diagonal_(0).numpy())
