"""The clustering of STUN's published code: which experts merge under a threshold.

The code takes the smallest entry of the distance matrix, say (i, j), and examines the distances from j to each member
of i's cluster and from i to each of j's: below the threshold, the two clusters merge, else the pair is rejected for
good, as is whatever would later have to examine it. So pairs are met in ascending order, ties in the matrix's own, and
a pair passes when it comes first of the pairs it examines and the last of them is below the threshold. Pairs between
other members of the two clusters are not examined: the code's linkage is complete only where one of the clusters is a
single expert. A layer stops when few enough clusters are left.

Shapes: L matrices, E experts each, P their pairs. An `order` is a pair's place when pairs are sorted by distance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

BLOCKED = -1


@dataclass(frozen=True)
class Run:
    """The M merges of one matrix in their order, the same at every threshold in (low, high]."""

    pairs_M2: np.ndarray
    heights_M: np.ndarray
    low: float
    high: float


class OfficialRule:
    """The rule on equally large matrices, all at once: one alone would spend most of its time between numpy calls."""

    def __init__(self, distances_EE: Sequence[np.ndarray], min_clusters: Sequence[int]):
        self.num_experts = len(distances_EE[0])
        self.most = np.array([max(self.num_experts - least, 0) for least in min_clusters])
        # Row-major, so that a stable sort leaves equal distances in the order in which argmin would find them.
        left_P, right_P = np.triu_indices(self.num_experts, 1)
        flat_LP = np.stack([distance_EE[left_P, right_P] for distance_EE in distances_EE])
        ascending_LP = flat_LP.argsort(axis=1, kind="stable")
        self.distance_LP = np.take_along_axis(flat_LP, ascending_LP, axis=1)
        self.left_LP, self.right_LP = left_P[ascending_LP], right_P[ascending_LP]
        # The diagonal holds P, the place of no pair; so the column of a cluster's own member is BLOCKED in its row.
        shape = (len(distances_EE), self.num_experts, self.num_experts)
        self.order_LEE = np.full(shape, len(left_P), dtype=np.int32)
        for order_EE, left, right in zip(self.order_LEE, self.left_LP, self.right_LP, strict=True):
            order_EE[left, right] = order_EE[right, left] = np.arange(len(left))
        # The sum of a pair's experts tells one from the other; nothing of the slot behind the pairs.
        self.sum_LP = np.pad(self.left_LP + self.right_LP, ((0, 0), (0, 1)))

    def run(self, which: Sequence[int], thresholds: Iterable[float]) -> list[Run]:
        """The merges of some of the matrices, each at its own threshold."""
        num_experts, slots = self.num_experts, self.distance_LP.shape[1] + 1
        source_L, rows = np.array(which), np.arange(len(which))
        below_L = np.array([np.searchsorted(self.distance_LP[n], t) for n, t in zip(which, thresholds, strict=True)])
        # Row x for cluster x, named by one of its experts: first and last of the pairs between it and each expert.
        # A first of BLOCKED says that one of them is not below the threshold; it stays when clusters grow.
        last_LEE = self.order_LEE[source_L]
        first_LEE = np.where(last_LEE < below_L[:, None, None].astype(np.int32), last_LEE, np.int32(BLOCKED))
        # Whether a pair would pass; it can only cease to. BLOCKED falls on the slot behind the last row's pairs.
        passes_LP = np.arange(slots) < below_L[:, None]
        experts, sum_LP = np.arange(num_experts), self.sum_LP[source_L]
        cluster_LE = np.tile(experts, (len(which), 1))
        examined_L = np.full(len(which), -1)
        slot_L, row_L = rows[:, None] * slots, rows[:, None] * num_experts**2
        place_SL = np.full((num_experts, len(which)), -1)
        for step in range(num_experts - 1):
            passes_LP[self.most[source_L] == step] = False
            place = passes_LP.argmax(1)
            live = np.flatnonzero(passes_LP[rows, place])
            if len(live) == 0:
                break
            place = place[live]
            place_SL[step, live] = place
            left, right = self.left_LP[source_L[live], place], self.right_LP[source_L[live], place]
            into, gone = cluster_LE[live, left], cluster_LE[live, right]
            last_into, last_gone = last_LEE[live, into], last_LEE[live, gone]
            few = rows[: len(live)]
            examined_L[live] = np.maximum(examined_L[live], np.maximum(last_into[few, right], last_gone[few, left]))
            last_LEE[live, into] = np.maximum(last_into, last_gone)
            # Of the pairs from an expert outside to the new cluster only the first is left, if it passes there too.
            first_into, first_gone = first_LEE[live, into], first_LEE[live, gone]
            first, cluster = np.minimum(first_into, first_gone), cluster_LE[live]
            np.copyto(cluster, into[:, None], where=cluster == gone[:, None])
            cluster_LE[live], first_LEE[live, into] = cluster, first
            slot = slot_L[live] + first
            member = sum_LP.take(slot) - experts
            seen = first_LEE.take(cluster * num_experts + member + row_L[live])
            passes_LP.ravel()[slot_L[live] + np.maximum(first_into, first_gone)] = False
            passes_LP.ravel()[slot] = seen == first
            passes_LP[:, -1] = False
        return [self._run(number, place_SL[:, row], examined_L[row], below_L[row]) for row, number in enumerate(which)]

    def _run(self, number: int, place_S: np.ndarray, examined: int, below: int) -> Run:
        merged = place_S[place_S >= 0]
        distance_P = self.distance_LP[number]
        pairs_M2 = np.stack([self.left_LP[number, merged], self.right_LP[number, merged]], axis=1)
        # A lower threshold changes nothing until it reaches the largest distance that a merge has examined.
        low = float(distance_P[examined]) if len(merged) else -np.inf
        high = float(distance_P[below]) if below < len(distance_P) else np.inf
        return Run(pairs_M2, distance_P[merged], low, high)
