"""Budgets: the model's or each layer's, under every linkage, with groups and without."""

from typing import Any

import numpy as np
import pytest
import torch

from stun_exp.expert_pruner.stun.cut import Budget, Cut, cut_linkage, cut_official


def line(*points: float) -> np.ndarray:
    return np.abs(np.subtract.outer(points, points))


def cuts(
    linkage: Any, budget: Budget, layers: list[Any], distances: list[np.ndarray], kept: list[int]
) -> tuple[list[Cut], list[str]]:
    if linkage == "official":
        return cut_official(layers, distances, kept, budget)
    return cut_linkage(layers, distances, kept, linkage, budget), []


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
    found = cut_linkage(layers, [line(0, 1, 2, 3)] * 2, [4, 4], "complete", "global")
    assert [(cut.num_merges, cut.threshold) for cut in found] == [(0, None)] * 2


@pytest.mark.parametrize("linkage", ["complete", "average", "single", "official"])
def test_no_layer_falls_below_what_its_router_needs(linkage: str, source: Any) -> None:
    """Half of eight must go, all of them cheaper in the first layer, whose router needs three."""
    layers = [source(0, torch.zeros(4, 1), top_k=3), source(1, torch.zeros(4, 1), top_k=1)]
    found, _ = cuts(linkage, "global", layers, [line(0, 0.01, 0.02, 0.03), line(0, 3, 7, 12)], [2, 2])
    assert [len(cut.clusters) for cut in found] == [3, 1]


@pytest.mark.parametrize("linkage", ["complete", "average", "single", "official"])
@pytest.mark.parametrize("budget", ["global", "per_layer"])
def test_groups_of_a_router_lose_equally_many(linkage: str, budget: Budget, source: Any) -> None:
    """0 and 4 are nearest of all but lie in different groups of four; 5-6 is far, but its group must lose one too."""
    grouped = source(0, torch.zeros(8, 1), num_groups=2)
    (cut,), warnings = cuts(linkage, budget, [grouped], [line(0, 1, 3, 7, 0.01, 10, 12, 20)], [6])
    assert cut.clusters == [[0, 1], [2], [3], [4], [5, 6], [7]]
    assert warnings == []


def test_where_the_official_search_gives_up_each_layer_says_so(layers: list[Any]) -> None:
    """Four experts equally far apart go from four to one at once; asked for three, it keeps four."""
    alike = 1 - np.eye(4)
    found, warnings = cut_official(layers, [line(0, 1, 3, 9), alike], [3, 3], "per_layer")
    assert [len(cut.clusters) for cut in found] == [3, 4]
    (warning,) = warnings
    assert warning.startswith("layer 1: expert_pruner.linkage=official: the official search finds no threshold that")
    assert warning.endswith("comes nearest and keeps 4")
