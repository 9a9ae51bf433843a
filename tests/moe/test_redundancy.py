"""Figures of redundancy, by hand and against brute force."""

import math

import pytest
import torch
from scipy.spatial.distance import cdist

from stun_exp.moe.redundancy import effective_number, gini, nearest_cosine, nearest_distances, weight_gram


def test_nearest_distance_by_hand() -> None:
    """Rows (3, 4), (3, 4) and (0, 5), all of length 5: the copies have distance 0, the third sqrt(10)."""
    rows_ED = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 5.0]])
    assert nearest_distances(rows_ED).tolist() == pytest.approx([0, 0, math.sqrt(10) / 5])


def test_nearest_distance_is_that_of_brute_force_far_from_the_origin() -> None:
    """Rows that differ by 1e-3 about a mean of 100: plain inner products in fp32 would see no difference."""
    rows_ED = 100 + 1e-3 * torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distance_EE = cdist(rows_ED, rows_ED)
    distance_EE[range(9), range(9)] = math.inf
    expected_E = distance_EE.min(1) / float(rows_ED.norm(dim=1).mean())
    assert nearest_distances(rows_ED).tolist() == pytest.approx(expected_E.tolist(), rel=1e-6)


def test_nearest_cosine_by_hand() -> None:
    """(1, 0), (1, 1) and (0, 0): the first two have cosine sqrt(1/2) with each other, the third 0 with both."""
    vectors_EP = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert nearest_cosine(vectors_EP @ vectors_EP.T) == pytest.approx(2 * math.sqrt(0.5) / 3)


def test_the_gram_of_pieces_is_that_of_the_whole() -> None:
    weight_EP = torch.randint(-9, 9, (4, 10), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(weight_gram(weight_EP.split(3, dim=1)), (weight_EP @ weight_EP.T).double())


@pytest.mark.parametrize(("load", "effective", "unevenness"), [([5, 5, 5, 5], 4, 0), ([0, 0, 0, 7], 1, 0.75)])
def test_extremes_of_load(load: list[int], effective: float, unevenness: float) -> None:
    assert effective_number(torch.tensor(load)) == pytest.approx(effective)
    assert gini(torch.tensor(load)) == pytest.approx(unevenness)


def test_gini_is_half_the_mean_difference_over_the_mean() -> None:
    load_E = torch.tensor([1.0, 4.0, 2.0, 9.0, 0.0])
    difference = (load_E[:, None] - load_E).abs().mean()
    assert gini(load_E) == pytest.approx(float(difference / 2 / load_E.mean()))
