"""The arithmetic of STUN's expert stage: distances, clusters under a whole-model budget, representatives.

Shapes: E experts of a layer, D hidden size, P parameters of one expert.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from stun_exp.moe.statistics import Coactivation


def distance(router_rows_ED: Tensor, coactivation: Coactivation | None, lambda1: float, lambda2: float) -> np.ndarray:
    """-b_ij of STUN's Eq. 7, (E, E) in fp64, diagonal 0: lambda1 ||W_i - W_j|| - lambda2 a_ij / mean(a).

    The mean is over all E^2 entries, the zero diagonal included, as in the official code.
    """
    rows_ED = router_rows_ED.double().cpu()
    # Not cdist's matrix-product form: it loses the small distances, which are the ones that merge.
    distance_EE = lambda1 * torch.cdist(rows_ED, rows_ED, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    if coactivation is not None:
        count_EE = coactivation.count_EE.numpy()
        if not count_EE.any():
            raise ValueError(
                "expert_pruner.lambda2: no two experts were ever active together (top-1 routing?); set lambda2=0"
            )
        distance_EE = distance_EE - lambda2 * count_EE / count_EE.mean()
    np.fill_diagonal(distance_EE, 0.0)
    return np.asarray(distance_EE)


def clusters_under_budget(
    distances_EE: Sequence[np.ndarray], min_clusters: Sequence[int], num_removed: int
) -> list[list[list[int]]]:
    """Each layer's clusters (members and clusters sorted) when one threshold for all layers merges `num_removed` times.

    Complete linkage merges at heights that never fall within a layer, so cutting every layer at one threshold is the
    same as taking the lowest merges of the whole model. Equal heights go by layer, then by order of merging, so any
    budget is hit exactly. A layer stops at `min_clusters` (the router's top_k). ValueError if that leaves too few.
    """
    merges = [_merges(distance_EE) for distance_EE in distances_EE]
    allowed = [max(len(d) - least, 0) for d, least in zip(distances_EE, min_clusters, strict=True)]
    if num_removed > sum(allowed):
        raise ValueError(
            f"{num_removed} experts are to go, but only {sum(allowed)} can if every layer keeps {max(min_clusters)}; "
            "lower expert_pruner.ratio"
        )
    candidates = sorted(
        (height, layer, step)
        for layer, (heights, _) in enumerate(merges)
        for step, height in enumerate(heights[: allowed[layer]])
    )
    taken = [0] * len(merges)
    for _, layer, _ in candidates[:num_removed]:
        taken[layer] += 1
    return [_cut(pairs, len(d), n) for (_, pairs), d, n in zip(merges, distances_EE, taken, strict=True)]


def representative(weights_EP: Tensor) -> int:
    """Row of the member nearest to the cluster's mean in parameter space (STUN 4.2.3), computed in fp32.

    Distances that differ by rounding alone count as equal and go to the first row: both members of a pair are equally
    far from their mean.
    """
    weights_EP = weights_EP.float()
    distance_E = (weights_EP - weights_EP.mean(0)).norm(dim=1)
    near = distance_E <= distance_E.min() * (1 + 1e-4)
    return int(near.nonzero()[0])


def _merges(distance_EE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights and pairs of one layer's complete-linkage merges, lowest first."""
    if len(distance_EE) < 2:
        return np.empty(0), np.empty((0, 2), dtype=int)
    # scipy wants distances that are not negative; complete linkage is unmoved by adding a constant.
    shift = min(distance_EE.min(), 0.0)
    shifted = distance_EE - shift
    np.fill_diagonal(shifted, 0.0)
    tree = linkage(squareform(shifted, checks=False), method="complete")
    return tree[:, 2] + shift, tree[:, :2].astype(int)


def _cut(pairs: np.ndarray, num_experts: int, num_merges: int) -> list[list[int]]:
    """The clusters after the first merges of a layer."""
    clusters = {expert: [expert] for expert in range(num_experts)}
    for step, (left, right) in enumerate(pairs[:num_merges]):
        clusters[num_experts + step] = sorted(clusters.pop(int(left)) + clusters.pop(int(right)))
    return sorted(clusters.values())
