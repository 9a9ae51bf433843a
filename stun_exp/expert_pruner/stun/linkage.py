"""Agglomerative clustering by scipy."""

from typing import Literal

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from stun_exp.expert_pruner.stun.merge_path import MergePath

Linkage = Literal["complete", "average", "single"]


def merge_path(distance_EE: np.ndarray, method: Linkage, num_groups: int = 1) -> MergePath:
    """All merges of one layer, lowest first.

    With groups of neighboring experts a step merges once in each, at the greatest of their heights: so the groups
    lose equally many, and no cluster reaches beyond its group.
    """
    size = len(distance_EE) // num_groups
    starts = range(0, len(distance_EE), size)
    trees = [_tree(distance_EE[start : start + size, start : start + size], method) for start in starts]
    steps = list(zip(*trees, strict=True))
    pairs = [(left + s, right + s) for step in steps for s, (left, right, _) in zip(starts, step, strict=True)]
    heights = [max(height for _, _, height in step) for step in steps for _ in starts]
    return MergePath(len(distance_EE), pairs, heights, num_groups)


def _tree(distance_EE: np.ndarray, method: Linkage) -> list[tuple[int, int, float]]:
    """The merges of one group: an expert of either cluster, and the height."""
    if len(distance_EE) < 2:
        return []
    # Negative distances are as good as any: these linkages only compare and average them.
    tree = linkage(squareform(distance_EE, checks=False), method=method)
    member = list(range(len(distance_EE)))
    for left, _ in tree[:, :2].astype(int):
        member.append(member[left])  # scipy numbers a new cluster on from the last
    return [(member[int(left)], member[int(right)], float(height)) for left, right, height, _ in tree]
