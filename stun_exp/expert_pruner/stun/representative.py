"""Which member of a cluster of experts survives.

Shapes: E experts of a layer, N members of one cluster, P parameters of one expert.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stun_exp.expert_pruner.stun.similarity import weight_distances

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource


def nearest_members(
    clusters: Sequence[Sequence[int]], layer: "ExpertSource", weight_distance_EE: np.ndarray | None
) -> list[int]:
    """Of each cluster the member nearest to the cluster's mean; reads the weights unless their distances are known."""
    merged = [cluster for cluster in clusters if len(cluster) > 1]
    inside: list[np.ndarray] = []
    if weight_distance_EE is not None:
        inside = [weight_distance_EE[np.ix_(cluster, cluster)] for cluster in merged]
    elif merged:
        # All at once: the layer may have to be read from disk for it.
        pieces = layer.expert_weights([expert for cluster in merged for expert in cluster])
        inside = weight_distances(pieces, [len(cluster) for cluster in merged])
    chosen = {c[0]: c[nearest_to_mean(distance_NN)] for c, distance_NN in zip(merged, inside, strict=True)}
    return [chosen.get(cluster[0], cluster[0]) for cluster in clusters]


def nearest_to_mean(weight_distance_NN: np.ndarray) -> int:
    """The member nearest to the mean of all in parameter space (STUN 4.2.3), from the members' distances.

    ||theta_i - mean||^2 is the mean of i's squared distances to all members, less half the mean over all pairs.
    Distances that differ by rounding alone count as equal and go to the first member. Both members of a pair are
    equally far from their mean; the official code, which computes in the checkpoint's own precision, leaves them to
    rounding.
    """
    if not np.isfinite(weight_distance_NN).all():
        raise ValueError("an expert's weights hold NaN or infinity; the checkpoint is damaged")
    square_NN = weight_distance_NN**2
    # Half the mean over all pairs is also the members' mean squared distance from their mean.
    spread = square_NN.mean() / 2
    distance_N = np.sqrt(np.maximum(square_NN.mean(1) - spread, 0))
    return int(np.flatnonzero(distance_N <= distance_N.min() + 1e-4 * np.sqrt(spread))[0])


def highest_members(clusters: Sequence[Sequence[int]], score_E: Sequence[float]) -> list[int]:
    """Of each cluster the member with the highest score; of equals the lowest index."""
    return [min(cluster, key=lambda expert: (-score_E[expert], expert)) for cluster in clusters]
