"""One layer's clusters at every budget: its merges, in the order in which they happen.

Plain Python, so that figures look up the same paths as the run that made them.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MergePath:
    """The merges of one layer's experts, lowest first."""

    num_experts: int
    pairs: list[tuple[int, int]]
    """For each merge, an expert of either cluster."""
    heights: list[float]
    """The distance at which each merge happens; it never falls."""
    stride: int = 1
    """Merges that happen together, one in each group of a group-limited router."""

    def clusters(self, num_merges: int) -> list[list[int]]:
        """The clusters after the first merges, members and clusters sorted."""
        assert num_merges % self.stride == 0, "a merge in each group is one step"
        cluster_of = {expert: [expert] for expert in range(self.num_experts)}
        for left, right in self.pairs[:num_merges]:
            merged = sorted(cluster_of[left] + cluster_of[right])
            cluster_of |= dict.fromkeys(merged, merged)
        return sorted(cluster for expert, cluster in cluster_of.items() if cluster[0] == expert)

    def survivors_in_order(self, score_E: Sequence[float]) -> list[int]:
        """All experts, those that merge last first, if the highest-scoring member of a cluster stands for it.

        Of equal scores it is the lower index. A merge takes one of two such members, so that for each number of
        clusters those that stand for them come first.
        """
        survivor = {expert: expert for expert in range(self.num_experts)}
        gone = []
        for left, right in self.pairs:
            stays, goes = sorted((survivor[left], survivor[right]), key=lambda e: (-score_E[e], e))
            gone.append(goes)
            survivor = {expert: stays if own == goes else own for expert, own in survivor.items()}
        return [*sorted(set(range(self.num_experts)) - set(gone)), *reversed(gone)]

    def num_merges(self, threshold: float, min_clusters: int = 1) -> int:
        """How many merges happen at or below a threshold while at least `min_clusters` are left."""
        return min(bisect_right(self.heights, threshold), self.most_merges(min_clusters))

    def most_merges(self, min_clusters: int) -> int:
        """How many merges whole steps can make and leave at least `min_clusters`."""
        return max(self.num_experts - min_clusters, 0) // self.stride * self.stride


def cut_globally(paths: Sequence[MergePath], min_clusters: Sequence[int], num_removed: int) -> list[int]:
    """How many merges each layer makes when one threshold for all layers merges `num_removed` times in total.

    Heights never fall within a layer, so cutting every layer at one threshold is the same as taking the lowest merges
    of the whole model. Equal heights go by layer, then by order of merging, so any budget is hit exactly; where
    groups of experts lose equally many, the nearest is. ValueError if a layer would be left with too few.
    """
    most = [path.most_merges(least) for path, least in zip(paths, min_clusters, strict=True)]
    if num_removed > sum(most):
        raise ValueError(
            f"{num_removed} experts are to go, but only {sum(most)} can if every layer keeps {max(min_clusters)}; "
            "lower expert_pruner.ratio"
        )
    steps = sorted(
        (path.heights[step], layer, step)
        for layer, path in enumerate(paths)
        for step in range(0, most[layer], path.stride)
    )
    taken, left = [0] * len(paths), num_removed
    for _, layer, _ in steps:
        stride = paths[layer].stride
        if 2 * left <= stride:
            break  # as near without this step as with it, or nearer
        taken[layer] += stride
        left -= stride
    return taken
