"""scipy's linkages under a budget, against a greedy search over all pairs of clusters."""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest

from stun_exp.expert_pruner.stun.linkage import Linkage, merge_path
from stun_exp.expert_pruner.stun.merge_path import cut_globally

Clusters = list[list[int]]
JOIN: dict[Linkage, Callable[[list[float]], float]] = {
    "complete": max,
    "average": lambda between: sum(between) / len(between),
    "single": min,
}


def random_distances(num_experts: int, seed: int, low: float = 0.0) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).uniform(low, 1.0, (num_experts, num_experts)), 1)
    return upper + upper.T


def greedy(
    distances: Sequence[np.ndarray], min_clusters: Sequence[int], num_removed: int, method: Linkage
) -> list[Clusters]:
    """The oracle: again and again, of all pairs of clusters in all layers, merge the two that are nearest."""
    layers = [[[expert] for expert in range(len(d))] for d in distances]
    for _ in range(num_removed):
        _, layer, left, right = min(
            (JOIN[method]([d[i, j] for i in a for j in b]), number, a, b)
            for number, (d, clusters) in enumerate(zip(distances, layers, strict=True))
            if len(clusters) > min_clusters[number]
            for a, b in combinations(clusters, 2)
        )
        layers[layer].remove(left)
        layers[layer].remove(right)
        layers[layer].append(sorted(left + right))
    return [sorted(clusters) for clusters in layers]


def under_budget(
    distances: Sequence[np.ndarray], least: Sequence[int], num_removed: int, method: Linkage = "complete"
) -> list[Clusters]:
    paths = [merge_path(d, method) for d in distances]
    taken = cut_globally(paths, least, num_removed)
    return [path.clusters(n) for path, n in zip(paths, taken, strict=True)]


@pytest.mark.parametrize("method", JOIN)
@pytest.mark.parametrize("low", [0.0, -3.0], ids=["distances", "coactivation makes them negative"])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_equal_brute_force_for_every_budget(seed: int, low: float, method: Linkage) -> None:
    """One threshold for all layers, each with its own size, and none below top_k: every budget is hit exactly."""
    sizes, least = [6, 9, 4, 7], [2, 3, 2, 1]
    distances = [random_distances(size, 10 * seed + layer, low) for layer, size in enumerate(sizes)]
    for num_removed in range(sum(sizes) - sum(least) + 1):
        clusters = under_budget(distances, least, num_removed, method)
        assert clusters == greedy(distances, least, num_removed, method)
        assert sum(map(len, clusters)) == sum(sizes) - num_removed
        assert all(len(c) >= k for c, k in zip(clusters, least, strict=True))


def test_clusters_are_nested_as_the_budget_rises() -> None:
    """Who is together stays together: what makes one clustering serve a whole sweep."""
    distances = [random_distances(8, seed) for seed in range(3)]
    finer = under_budget(distances, [1, 1, 1], 0)
    for num_removed in range(1, 22):
        coarser = under_budget(distances, [1, 1, 1], num_removed)
        for fine, coarse in zip(finer, coarser, strict=True):
            assert all(any(set(small) <= set(large) for large in coarse) for small in fine)
        finer = coarser


def test_each_linkage_by_hand() -> None:
    """On a line at 0, 1, 2.1, 3.6. Complete and average pair up the rest; single chains the gap of 1.1 before 1.5."""
    points = np.array([0.0, 1.0, 2.1, 3.6])
    line = np.abs(points[:, None] - points[None])
    assert merge_path(line, "complete").heights == pytest.approx([1.0, 1.5, 3.6])
    assert merge_path(line, "single").heights == pytest.approx([1.0, 1.1, 1.5])
    # Average: {0, 1} to 2.1 is (2.1 + 1.1) / 2 = 1.6, more than 1.5; then (2.1 + 3.6 + 1.1 + 2.6) / 4 = 2.35.
    assert merge_path(line, "average").heights == pytest.approx([1.0, 1.5, 2.35])
    assert merge_path(line, "complete").clusters(2) == [[0, 1], [2, 3]]
    assert merge_path(line, "single").clusters(2) == [[0, 1, 2], [3]]


@pytest.mark.parametrize("method", JOIN)
@pytest.mark.parametrize("num_groups", [2, 3])
def test_groups_merge_within_themselves_and_equally_often(num_groups: int, method: Linkage) -> None:
    """A step is the next merge of each group's own path; its height is the greatest of theirs."""
    size = 12 // num_groups
    distance = random_distances(12, 5, -1.0)
    path = merge_path(distance, method, num_groups)
    blocks = [slice(start, start + size) for start in range(0, 12, size)]
    alone = [merge_path(distance[block, block], method) for block in blocks]
    for step in range(size):
        expected = [
            [expert + block.start for expert in cluster]
            for one, block in zip(alone, blocks, strict=True)
            for cluster in one.clusters(step)
        ]
        assert path.clusters(step * num_groups) == sorted(expected)
    assert path.heights[::num_groups] == [max(heights) for heights in zip(*(a.heights for a in alone), strict=True)]
    assert path.heights == sorted(path.heights)


def test_a_single_expert_has_no_merges() -> None:
    assert merge_path(np.zeros((1, 1)), "complete").pairs == []
    assert merge_path(np.zeros((2, 2)), "complete", num_groups=2).pairs == []


def test_distances_are_left_as_they_were() -> None:
    negative = random_distances(5, 0, -2.0)
    before = negative.copy()
    merge_path(negative, "complete")
    assert np.array_equal(negative, before)
