"""Budgets: the model's or each layer's, under every linkage, with groups and without."""

from typing import Any

import numpy as np
import pytest
import torch

from stun_exp.expert_pruner.stun.cut import BudgetOver, Cut, Goal, cut_linkage, cut_official, fewest_clusters


def line(*points: float) -> np.ndarray:
    return np.abs(np.subtract.outer(points, points))


def cuts(
    linkage: Any,
    budget: BudgetOver,
    layers: list[Any],
    distances: list[np.ndarray],
    kept: list[int],
    threshold: float | None = None,
    max_removed: int | None = None,
) -> tuple[list[Cut], list[str]]:
    least = [fewest_clusters(layer, max_removed) for layer in layers]
    ratio = 1 - sum(kept) / sum(layer.num_experts for layer in layers)
    goal = Goal(ratio, kept, least, budget, threshold, max_removed)
    if linkage == "official":
        return cut_official(layers, distances, goal)
    return cut_linkage(layers, distances, linkage, goal), []


@pytest.fixture
def layers(source: Any) -> list[Any]:
    return [source(i, torch.zeros(4, 1)) for i in range(2)]


@pytest.mark.parametrize("linkage", ["complete", "average", "single", "official"])
def test_a_budget_is_the_models_or_each_layers(linkage: str, layers: list[Any]) -> None:
    """The first layer has the near pairs, at 0.1 and 0.2: a budget of two falls on it alone, or on each layer once."""
    distances = [line(0, 0.1, 5, 5.2), line(0, 1, 3, 9)]
    found, _ = cuts(linkage, "global", layers, distances, [3, 3])
    assert [cut.clusters for cut in found] == [[[0, 1], [2, 3]], [[0], [1], [2], [3]]]
    assert len({cut.threshold for cut in found}) == 1
    found, warnings = cuts(linkage, "per_layer", layers, distances, [3, 3])
    assert [cut.clusters for cut in found] == [[[0, 1], [2], [3]]] * 2
    assert warnings == []
    if linkage != "official":
        assert [cut.threshold for cut in found] == pytest.approx([0.1, 1.0])


def test_a_layer_without_merges_has_no_threshold(layers: list[Any]) -> None:
    found, _ = cuts("complete", "global", layers, [line(0, 1, 2, 3)] * 2, [4, 4])
    assert [(cut.num_merges, cut.threshold) for cut in found] == [(0, None)] * 2


@pytest.mark.parametrize("linkage", ["complete", "average", "single", "official"])
def test_no_layer_falls_below_what_its_router_needs(linkage: str, source: Any) -> None:
    """Half of eight must go, all of them cheaper in the first layer, whose router needs three."""
    layers = [source(0, torch.zeros(4, 1), top_k=3), source(1, torch.zeros(4, 1), top_k=1)]
    found, _ = cuts(linkage, "global", layers, [line(0, 0.01, 0.02, 0.03), line(0, 3, 7, 12)], [2, 2])
    assert [len(cut.clusters) for cut in found] == [3, 1]


@pytest.mark.parametrize("linkage", ["complete", "average", "single", "official"])
@pytest.mark.parametrize("budget", ["global", "per_layer"])
def test_groups_of_a_router_lose_equally_many(linkage: str, budget: BudgetOver, source: Any) -> None:
    """0 and 4 are nearest of all but lie in different groups of four; 5-6 is far, but its group must lose one too."""
    grouped = source(0, torch.zeros(8, 1), num_groups=2)
    (cut,), warnings = cuts(linkage, budget, [grouped], [line(0, 1, 3, 7, 0.01, 10, 12, 20)], [6])
    assert cut.clusters == [[0, 1], [2], [3], [4], [5, 6], [7]]
    assert warnings == []


def test_where_the_official_search_gives_up_each_layer_says_so(layers: list[Any]) -> None:
    """Four experts equally far apart go from four to one at once; asked for three, it keeps four."""
    alike = 1 - np.eye(4)
    found, warnings = cuts("official", "per_layer", layers, [line(0, 1, 3, 9), alike], [3, 3])
    assert [len(cut.clusters) for cut in found] == [3, 4]
    (warning,) = warnings
    assert warning.startswith("layer 1: expert_pruner.linkage=official: the official search finds no threshold that")
    assert warning.endswith("comes nearest and keeps 4")


@pytest.mark.parametrize("linkage", ["complete", "average", "single", "official"])
def test_a_given_threshold_is_taken_where_it_keeps_what_the_ratio_keeps(linkage: str, layers: list[Any]) -> None:
    """0-0.1 and 5-5.2 lie below 0.5, and in the second layer nothing; the search would stop at another threshold."""
    distances = [line(0, 0.1, 5, 5.2), line(0, 1, 3, 9)]
    found, warnings = cuts(linkage, "global", layers, distances, [3, 3], threshold=0.5)
    assert [cut.clusters for cut in found] == [[[0, 1], [2, 3]], [[0], [1], [2], [3]]]
    assert [cut.threshold for cut in found] == [0.5, 0.5]
    assert warnings == []


@pytest.mark.parametrize("linkage", ["complete", "average", "single", "official"])
def test_a_given_threshold_that_keeps_another_number_is_refused(linkage: str, layers: list[Any]) -> None:
    """At 0.15 one pair merges and 7 of 8 stay, where the ratio keeps 6: the text has the ratio that goes with it."""
    told = (
        r"^expert_pruner\.threshold=0\.15 keeps 7 of 8 experts, and expert_pruner\.ratio=0\.25 keeps 6; "
        r"pass expert_pruner\.ratio=0\.125 .* or expert_pruner\.threshold=null"
    )
    with pytest.raises(ValueError, match=told):
        cuts(linkage, "global", layers, [line(0, 0.1, 5, 5.2), line(0, 1, 3, 9)], [3, 3], threshold=0.15)


@pytest.mark.parametrize("linkage", ["complete", "average", "single", "official"])
def test_no_layer_loses_more_than_the_limit(linkage: str, layers: list[Any]) -> None:
    """Both near pairs lie in the first layer, which may lose one: the other must come from the second."""
    found, _ = cuts(linkage, "global", layers, [line(0, 0.1, 5, 5.2), line(0, 1, 3, 9)], [3, 3], max_removed=1)
    assert [cut.clusters for cut in found] == [[[0, 1], [2], [3]]] * 2


@pytest.mark.parametrize("linkage", ["complete", "official"])
@pytest.mark.parametrize("budget", ["global", "per_layer"])
def test_a_limit_that_rules_the_ratio_out_is_refused(linkage: str, budget: BudgetOver, layers: list[Any]) -> None:
    """The published script would try ten thresholds and end."""
    told = (
        r"^expert_pruner\.max_removed_per_layer=1: 2 of 8 experts can go, and expert_pruner\.ratio=0\.5 removes 4; "
        r"pass a higher limit or null for none, or expert_pruner\.ratio=0\.25 or less"
    )
    with pytest.raises(ValueError, match=told):
        cuts(linkage, budget, layers, [line(0, 1, 3, 9)] * 2, [2, 2], max_removed=1)


def test_the_limit_never_asks_for_less_than_the_router_needs(source: Any) -> None:
    layer = source(0, torch.zeros(4, 1), top_k=2)
    assert [fewest_clusters(layer, limit) for limit in (None, 1, 2, 3, 9)] == [2, 3, 2, 2, 2]
