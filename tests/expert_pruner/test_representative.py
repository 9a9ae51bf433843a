"""Who survives, by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from stun_exp.expert_pruner.stun.representative import highest_members, nearest_members, nearest_to_mean
from stun_exp.expert_pruner.stun.similarity import weight_distances


def weight_distance(weights_NP: torch.Tensor) -> np.ndarray:
    return weight_distances([weights_NP], [len(weights_NP)])[0]


def test_the_nearest_to_the_mean_stays() -> None:
    """0, 9, 3 on a line: the mean is 4, so 3 stays."""
    assert nearest_to_mean(weight_distance(torch.tensor([[0.0], [9.0], [3.0]]))) == 2


@pytest.mark.parametrize("seed", range(5))
def test_pairwise_distances_know_the_distance_to_the_mean(seed: int) -> None:
    weights = torch.randn(6, 50, generator=torch.Generator().manual_seed(seed))
    weights *= torch.linspace(3, 1, 6)[:, None].roll(seed, 0)
    nearest = int((weights - weights.mean(0)).norm(dim=1).argmin())
    assert nearest_to_mean(weight_distance(weights)) == nearest


def test_of_a_pair_the_first_stays_whatever_the_rounding() -> None:
    """Both are equally far from their mean; without the tolerance, rounding would decide on each machine anew."""
    for seed in range(50):
        pair = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed))
        assert nearest_to_mean(weight_distance(pair)) == nearest_to_mean(weight_distance(pair.flip(0))) == 0


def test_of_members_as_near_to_the_mean_the_first_stays() -> None:
    """v and -v are as near to the mean of 10w, v, -v and -10w, around 1; rounding would choose."""
    for seed in range(20):
        v, w = torch.randn(2, 1000, generator=torch.Generator().manual_seed(seed))
        weights = 1 + torch.stack([10 * w, v, -v, -10 * w])
        assert nearest_to_mean(weight_distance(weights)) == 1
        assert nearest_to_mean(weight_distance(weights[[0, 2, 1, 3]])) == 1


def test_only_merged_clusters_are_read(source: Any) -> None:
    layer = source(0, torch.ones(5, 1), torch.tensor([[0.0], [9.0], [3.0], [1.0], [1.0]]))
    read = []
    layer.expert_weights = lambda experts: read.append(list(experts)) or [layer.weights_EP[experts]]
    assert nearest_members([[0, 1, 2], [3], [4]], layer, None) == [2, 3, 4]
    assert nearest_members([[0], [1], [2], [3], [4]], layer, None) == [0, 1, 2, 3, 4]
    assert nearest_members([[0, 1, 2], [3], [4]], layer, weight_distance(layer.weights_EP)) == [2, 3, 4]
    assert read == [[0, 1, 2]]


def test_the_highest_score_stays_and_of_equals_the_first() -> None:
    assert highest_members([[0, 3], [1, 2, 4]], [5.0, 1.0, 7.0, 5.0, 7.0]) == [0, 2]


def test_weights_that_are_no_numbers_are_told() -> None:
    """No distance is the least then, and the first of none would be an index error."""
    distance_NN = weight_distance(torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [3.0, 1.0]]))
    with pytest.raises(ValueError, match="NaN or infinity; the checkpoint is damaged"):
        nearest_to_mean(distance_NN)
