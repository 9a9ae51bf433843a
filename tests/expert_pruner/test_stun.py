"""STUN's expert stage against brute force and by hand."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stun_exp.checkpoint import Checkpoint
from stun_exp.expert_pruner.clustering import clusters_under_budget, distance, representative
from stun_exp.expert_pruner.stun import STUN
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import Coactivation

Clusters = list[list[int]]
Planned = Callable[..., Plan]


def random_distances(num_experts: int, seed: int, low: float = 0.0) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).uniform(low, 1.0, (num_experts, num_experts)), 1)
    return upper + upper.T


def greedy(distances: Sequence[np.ndarray], min_clusters: Sequence[int], num_removed: int) -> list[Clusters]:
    """The oracle: again and again, of all pairs of clusters in all layers, merge the two that are nearest."""
    layers = [[[expert] for expert in range(len(d))] for d in distances]
    for _ in range(num_removed):
        _, layer, left, right = min(
            (max(d[i, j] for i in a for j in b), number, a, b)
            for number, (d, clusters) in enumerate(zip(distances, layers, strict=True))
            if len(clusters) > min_clusters[number]
            for a, b in combinations(clusters, 2)
        )
        layers[layer].remove(left)
        layers[layer].remove(right)
        layers[layer].append(sorted(left + right))
    return [sorted(clusters) for clusters in layers]


@pytest.mark.parametrize("low", [0.0, -3.0], ids=["distances", "coactivation makes them negative"])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_equal_brute_force_for_every_budget(seed: int, low: float) -> None:
    """One threshold for all layers, each with its own size, and none below top_k: every budget is hit exactly."""
    sizes, least = [6, 9, 4, 7], [2, 3, 2, 1]
    distances = [random_distances(size, 10 * seed + layer, low) for layer, size in enumerate(sizes)]
    for num_removed in range(sum(sizes) - sum(least) + 1):
        clusters = clusters_under_budget(distances, least, num_removed)
        assert clusters == greedy(distances, least, num_removed)
        assert sum(map(len, clusters)) == sum(sizes) - num_removed
        assert all(len(c) >= k for c, k in zip(clusters, least, strict=True))


def test_clusters_are_nested_as_the_budget_rises() -> None:
    """Who is together stays together: what makes one clustering serve a whole sweep."""
    distances = [random_distances(8, seed) for seed in range(3)]
    finer = clusters_under_budget(distances, [1, 1, 1], 0)
    for num_removed in range(1, 22):
        coarser = clusters_under_budget(distances, [1, 1, 1], num_removed)
        for fine, coarse in zip(finer, coarser, strict=True):
            assert all(any(set(small) <= set(large) for large in coarse) for small in fine)
        finer = coarser


def test_one_threshold_means_that_alike_layers_lose_more() -> None:
    """All pairs of layer 0 are nearer than any of layer 1, so it gives all four experts of the budget."""
    near, far = 0.1 * random_distances(6, 0), 1 + random_distances(6, 1)
    clusters = clusters_under_budget([near, far], [2, 2], 4)
    assert [len(layer) for layer in clusters] == [2, 6]


def test_complete_linkage_looks_at_all_cross_pairs() -> None:
    """On a line at 0, 1, 2.1, 3.5, single linkage would chain 0-1-2.1: its gap of 1.1 is below that of 2.1 and 3.5."""
    points = np.array([0.0, 1.0, 2.1, 3.5])
    line = np.abs(points[:, None] - points[None])
    assert clusters_under_budget([line], [1], 2) == [[[0, 1], [2, 3]]]


def test_equal_heights_are_taken_layer_by_layer() -> None:
    """All distances alike: any choice is as good, so it must be the same on every machine."""
    alike = [np.ones((4, 4)) - np.eye(4)] * 3
    counts = [[len(c) for c in clusters_under_budget(alike, [2, 2, 2], n)] for n in range(7)]
    assert counts == [[4, 4, 4], [3, 4, 4], [2, 4, 4], [2, 3, 4], [2, 2, 4], [2, 2, 3], [2, 2, 2]]
    assert clusters_under_budget(alike, [2, 2, 2], 5) == clusters_under_budget(alike, [2, 2, 2], 5)


def test_more_than_top_k_allows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"9 experts are to go, but only 8 can.*expert_pruner.ratio"):
        clusters_under_budget([random_distances(6, 0)] * 2, [2, 2], 9)


def test_distances_are_left_as_they_were() -> None:
    negative = random_distances(5, 0, -2.0)
    before = negative.copy()
    clusters_under_budget([negative], [1], 2)
    assert np.array_equal(negative, before)


def coactivation(count_EE: list[list[int]]) -> Coactivation:
    statistic = Coactivation(len(count_EE))
    statistic.count_EE = torch.tensor(count_EE, dtype=torch.float64)
    return statistic


def test_router_distance_by_hand() -> None:
    """Rows (0, 0), (3, 4), (3, 0): 5, 3 and 4, each times lambda1."""
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    assert distance(rows, None, 2.0, 0.0).tolist() == [[0, 10, 6], [10, 0, 8], [6, 8, 0]]


def test_coactivation_is_divided_by_its_mean_over_all_entries() -> None:
    """Counts 6 and 3 over 9 entries, zero diagonal included: the mean is 18 / 9 = 2, so a = 3 and 1.5."""
    together = coactivation([[0, 6, 0], [6, 0, 3], [0, 3, 0]])
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    assert distance(rows, together, 0.0, 1.0).tolist() == [[0, -3, 0], [-3, 0, -1.5], [0, -1.5, 0]]
    assert distance(rows, together, 1.0, 2.0).tolist() == [[0, 5 - 6, 3], [5 - 6, 0, 4 - 3], [3, 4 - 3, 0]]


def test_coactivation_does_not_depend_on_the_amount_of_text() -> None:
    rows = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    once, tenfold = (
        coactivation([[0, 6, 1], [6, 0, 3], [1, 3, 0]]),
        coactivation([[0, 60, 10], [60, 0, 30], [10, 30, 0]]),
    )
    np.testing.assert_allclose(distance(rows, once, 1.0, 1.0), distance(rows, tenfold, 1.0, 1.0))


def test_coactivation_that_never_happened_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lambda2.*top-1 routing"):
        distance(torch.eye(3), Coactivation(3), 1.0, 1.0)


def test_small_distances_of_large_rows_survive() -> None:
    """The matrix-product form of the distance, or fp32, would call rows that differ by 1e-3 at 1e4 equal."""
    rows = torch.full((2, 64), 1e4, dtype=torch.float64)
    rows[1, 0] += 1e-3
    assert distance(rows, None, 1.0, 0.0)[0, 1] == pytest.approx(1e-3)


def test_representative_is_nearest_to_the_mean() -> None:
    """0, 3, 9 on a line: the mean is 4, so 3 stays."""
    assert representative(torch.tensor([[0.0], [9.0], [3.0]])) == 2


def test_of_a_pair_the_first_stays_whatever_the_rounding() -> None:
    """Both are equally far from their mean; without the tolerance, rounding would decide on each machine anew."""
    for seed in range(50):
        pair = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed))
        assert representative(pair) == representative(pair.flip(0)) == 0


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def stun(ratio: float, *, lambda1: float = 1.0, lambda2: float = 0.0, kappa: int = 0) -> STUN:
    return STUN(ratio=ratio, lambda1=lambda1, lambda2=lambda2, kappa=kappa)


@pytest.fixture
def layer_of_five(source: Any) -> Any:
    """Router rows cluster as {0, 2, 4}, {1}, {3}; in weights, expert 4 is nearest to the mean of 0, 2 and 4."""
    return source(7, column(0, 5, 0.1, 9, 0.2), column(1, 0, 6, 0, 3))


def test_plan_keeps_representatives_in_the_original_order(planned: Planned, layer_of_five: Any) -> None:
    """Two of five go. Weights 1, 6, 3 have the mean 10/3: expert 4 represents 0 and 2, and comes last."""
    (layer,) = planned(stun(0.4), [layer_of_five]).layers
    assert (layer.layer, layer.num_experts) == (7, 5)
    assert layer.kept == [1, 3, 4]
    assert layer.groups == [[1], [3], [4]]


@pytest.mark.parametrize(("kappa", "reconstructed"), [(0, False), (3, False), (4, True)])
def test_fewer_clusters_than_kappa_become_means(
    kappa: int, reconstructed: bool, planned: Planned, layer_of_five: Any
) -> None:
    """Three clusters are fewer than 4, not than 3; the representative keeps its place in the order."""
    (layer,) = planned(stun(0.4, kappa=kappa), [layer_of_five]).layers
    assert layer.kept == [1, 3, 4]
    assert layer.groups == [[1], [3], [0, 2, 4] if reconstructed else [4]]


def test_kappa_is_the_layers_own_affair(planned: Planned, source: Any) -> None:
    """Layer 0 falls to two clusters and is reconstructed; layer 1 keeps three and is not."""
    near, far = (
        source(0, column(0, 0.01, 1, 1.01), column(1, 2, 3, 4)),
        source(1, column(0, 9, 0.02, 20), column(1, 2, 3, 4)),
    )
    plan = planned(stun(3 / 8, kappa=3), [near, far])
    assert [layer.groups for layer in plan.layers] == [[[0, 1], [2, 3]], [[0], [1], [3]]]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5])
def test_as_many_experts_go_as_the_ratio_of_the_whole_model(ratio: float, planned: Planned, source: Any) -> None:
    sources = [source(i, torch.randn(8, 4), torch.randn(8, 10), top_k=2) for i in range(3)]
    plan = planned(stun(ratio, kappa=3), sources)
    assert sum(layer.num_experts - len(layer.groups) for layer in plan.layers) == round(24 * ratio)


def test_ratio_zero_keeps_everything_even_below_kappa(planned: Planned, layer_of_five: Any) -> None:
    (layer,) = planned(stun(0.0, kappa=9), [layer_of_five]).layers
    assert layer.groups == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("kappa", [0, 9], ids=["representatives", "means"])
def test_permuting_experts_permutes_the_plan(kappa: int, planned: Planned, source: Any) -> None:
    """A line of router rows in three clusters of three: no pair, whose tie would go to the lower number."""
    rows = column(0, 0.1, 0.3, 10, 10.1, 10.3, 20, 20.1, 20.3)
    weights = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([4, 7, 0, 8, 2, 5, 1, 6, 3])
    pruner = stun(6 / 9, kappa=kappa)
    (plan,) = planned(pruner, [source(0, rows, weights)]).layers
    (permuted,) = planned(pruner, [source(0, rows[order], weights[order])]).layers
    assert len(plan.groups) == 3
    assert sorted(plan.groups) == sorted(sorted(order[group].tolist()) for group in permuted.groups)
    assert plan.kept == sorted(order[permuted.kept].tolist())


def test_lambdas_of_zero_leave_no_similarity() -> None:
    with pytest.raises(ValidationError, match="lambda1 and lambda2 are both 0"):
        stun(0.2, lambda1=0.0, lambda2=0.0)


def test_only_coactivation_needs_data(source: Any) -> None:
    layer = source(0, torch.ones(8, 2))
    assert stun(0.2).statistics(layer) == []
    (statistic,) = stun(0.2, lambda2=0.5).statistics(layer)
    assert isinstance(statistic, Coactivation)
    assert statistic.count_EE.shape == (8, 8)


def test_routers_alone_need_no_forward_pass(checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Any) -> None:
    """STUN's O(1): not a single pass over the model with (lambda1, lambda2) = (1, 0)."""
    plan, forward_passes = plan_and_passes(checkpoint, stun(0.25), [tokens_BT])
    assert forward_passes == 0
    assert [layer.layer for layer in plan.layers] == [i for i in range(3) if checkpoint.outline(i).is_moe]


def test_coactivation_takes_one_forward_pass(checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Any) -> None:
    plan, forward_passes = plan_and_passes(checkpoint, stun(0.25, lambda1=0.0, lambda2=1.0), [tokens_BT])
    assert 0 < forward_passes <= 1
    assert sum(layer.num_experts - len(layer.groups) for layer in plan.layers) == round(
        0.25 * sum(layer.num_experts for layer in plan.layers)
    )
