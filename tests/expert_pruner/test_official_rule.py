"""The fast form of the official rule against the rule word by word."""

import math

import numpy as np
import pytest

from stun_exp.expert_pruner.stun.merge_path import MergePath
from stun_exp.expert_pruner.stun.official_rule import OfficialRule, Run
from stun_exp.expert_pruner.stun.official_search import OfficialLayers

Clusters = list[list[int]]
INF = math.inf


def literal(distance_EE: np.ndarray, threshold: float, most_removed: int) -> Clusters:
    """The oracle: a matrix that forgets what was tried, and a search for its smallest entry, again and again."""
    d = distance_EE.astype(float).copy()
    n = len(d)
    np.fill_diagonal(d, INF)
    cluster = {expert: {expert} for expert in range(n)}
    while d.min() < threshold:
        if len({id(c) for c in cluster.values()}) <= n - most_removed:
            break
        v1, v2 = divmod(int(d.argmin()), n)
        tested = [(c, v2) for c in cluster[v1]] + [(c, v1) for c in cluster[v2]]
        if max(d[entry] for entry in tested) < threshold:
            union = cluster[v1] | cluster[v2]
            for expert in union:
                cluster[expert] = union
            for entry in tested:
                d[entry] = INF
        else:
            d[v1, v2] = d[v2, v1] = INF
    return sorted(sorted(c) for expert, c in cluster.items() if min(c) == expert)


def matrix(kind: str, num_experts: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    shape = (num_experts, num_experts)
    values = {
        "random": lambda: random.uniform(0.1, 1.0, shape),
        "tied": lambda: random.choice([0.2, 0.5, 0.7], shape),
        "integer": lambda: random.integers(0, 9, shape).astype(float),
        "negative": lambda: -random.integers(0, 40, shape) / 7,
        "points": lambda: random.normal(size=shape),
    }[kind]()
    if kind == "points":  # distances of points in a plane: alike in groups, as routers may be
        values = np.hypot(*(values[:2, :, None] - values[:2, None, :]))
    upper = np.triu(values, 1)
    return np.asarray(upper + upper.T)


def thresholds(distance_EE: np.ndarray) -> list[float]:
    """Each distance, where `<` and `<=` differ, the middles between, and beyond both ends."""
    values = np.unique(distance_EE[np.triu_indices(len(distance_EE), 1)])
    return [values[0] - 1, *values, *((values[1:] + values[:-1]) / 2), values[-1] + 1, INF]


def clusters(distance_EE: np.ndarray, threshold: float, min_clusters: int = 1) -> Clusters:
    (run,) = OfficialRule([distance_EE], [min_clusters]).run([0], [threshold])
    return after(len(distance_EE), run)


def after(num_experts: int, run: Run) -> Clusters:
    """The clusters after all merges of a run."""
    path = MergePath(num_experts, [(i, j) for i, j in run.pairs_M2.tolist()], run.heights_M.tolist())
    return path.clusters(len(path.pairs))


@pytest.mark.parametrize("kind", ["random", "tied", "integer", "negative", "points"])
@pytest.mark.parametrize(("num_experts", "min_clusters"), [(2, 1), (7, 1), (9, 4), (14, 2)])
def test_clusters_equal_the_literal_rule_at_every_threshold(kind: str, num_experts: int, min_clusters: int) -> None:
    """The stop rule active and not; alone, and from layers that are run again only where their runs do not hold."""
    for seed in range(4):
        distance_EE = matrix(kind, num_experts, seed)
        reused = OfficialLayers([distance_EE], [min_clusters])
        trials = thresholds(distance_EE)
        for threshold in np.random.default_rng(seed).permutation(trials):
            expected = literal(distance_EE, threshold, num_experts - min_clusters)
            assert clusters(distance_EE, threshold, min_clusters) == expected
            (run,) = reused.at([threshold])
            assert after(num_experts, run) == expected
            assert reused.total(threshold) == len(expected)
        assert len(reused.runs[0]) < len(trials)


def test_layers_together_equal_each_alone() -> None:
    """Some at their own thresholds, limits and numbers of merges, in any order: none may leak into another."""
    kinds = ["points", "tied", "negative", "random", "integer"]
    distances = [matrix(kind, 10, seed) for seed, kind in enumerate(kinds)]
    least, which, trials = [1, 3, 2, 9, 10], [3, 0, 4, 2, 1], [0.9, 1.2, 5.0, -1.5, 0.6]
    runs = OfficialRule(distances, least).run(which, trials)
    for number, threshold, run in zip(which, trials, runs, strict=True):
        expected = literal(distances[number], threshold, 10 - least[number])
        assert after(10, run) == expected


def test_a_larger_layer_equals_the_literal_rule() -> None:
    """48 experts that merge far enough for rejections to block later merges."""
    distance_EE = matrix("points", 48, 0)
    for threshold in (0.3, 0.8, 1.5, 3.0):
        assert clusters(distance_EE, threshold) == literal(distance_EE, threshold, 47)


def test_pairs_between_other_members_are_not_examined() -> None:
    """0-1 and 2-3 merge; then 1-2 examines 0-2 and 1-3, all below 1, but never 0-3, which lies at 9."""
    d = np.array([[0, 0.1, 0.4, 9], [0.1, 0, 0.3, 0.4], [0.4, 0.3, 0, 0.2], [9, 0.4, 0.2, 0]])
    (run,) = OfficialRule([d], [1]).run([0], [1.0])
    assert after(4, run) == [[0, 1, 2, 3]]
    assert (run.pairs_M2.tolist(), run.heights_M.tolist()) == ([[0, 1], [2, 3], [1, 2]], [0.1, 0.2, 0.3])


def test_a_rejected_pair_blocks_what_must_examine_it() -> None:
    """1-2 is rejected, since 0-2 is too far; 3 joins 2; then 1-3 would merge, had it not to look at 1-2 again."""
    d = np.array([[0, 0.1, 2, 0.5], [0.1, 0, 0.2, 0.4], [2, 0.2, 0, 0.3], [0.5, 0.4, 0.3, 0]])
    assert literal(d, 1.0, 3) == [[0, 1], [2, 3]]
    assert clusters(d, 1.0) == [[0, 1], [2, 3]]


def test_equal_distances_are_met_in_row_major_order() -> None:
    """0-2 and 1-2 are equally near, 0-1 far: the first row's pair goes first, and 1 is left out."""
    d = np.array([[0, 9, 1.0], [9, 0, 1.0], [1, 1, 0]])
    assert clusters(d, 2.0) == [[0, 2], [1]]


def test_the_threshold_itself_does_not_merge() -> None:
    d = np.array([[0, 0.5], [0.5, 0]])
    assert clusters(d, 0.5) == [[0], [1]]
    assert clusters(d, np.nextafter(0.5, 1)) == [[0, 1]]
