"""Distances of experts, by hand."""

import numpy as np
import pytest
import torch

from stun_exp.expert_pruner.stun.similarity import (
    coactivation_similarity,
    router_distance,
    row_distance,
    weight_distances,
)

ROWS = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
TOGETHER = torch.tensor([[0.0, 6.0, 0.0], [6.0, 0.0, 3.0], [0.0, 3.0, 0.0]], dtype=torch.float64)


def test_router_distance_by_hand() -> None:
    """Rows (0, 0), (3, 4), (3, 0): 5, 3 and 4."""
    assert router_distance(ROWS, "none").tolist() == [[0, 5, 3], [5, 0, 4], [3, 4, 0]]


def test_router_distance_over_the_norm_of_the_whole_router() -> None:
    """||W||_F is the root of 9 + 16 + 9 = 34: one number a layer, not the two rows' own norms."""
    np.testing.assert_allclose(router_distance(ROWS, "frobenius") * 34**0.5, [[0, 5, 3], [5, 0, 4], [3, 4, 0]])


def test_a_router_of_zeros_has_no_norm() -> None:
    with pytest.raises(ValueError, match=r"router_scale=frobenius.*router_scale=none"):
        router_distance(torch.zeros(3, 2), "frobenius")


def test_coactivation_is_divided_by_its_mean_over_all_entries() -> None:
    """Counts 6 and 3 over 9 entries, zero diagonal included: the mean is 18 / 9 = 2, so a = 3 and 1.5."""
    assert coactivation_similarity(TOGETHER, "mean").tolist() == [[0, 3, 0], [3, 0, 1.5], [0, 1.5, 0]]
    assert coactivation_similarity(TOGETHER, "count").tolist() == TOGETHER.tolist()


def test_the_mean_makes_coactivation_independent_of_the_amount_of_text() -> None:
    for scale, factor in (("mean", 1), ("count", 10)):
        once, tenfold = (coactivation_similarity(count, scale) for count in (TOGETHER, 10 * TOGETHER))  # type: ignore[arg-type]
        np.testing.assert_allclose(tenfold, factor * once)


def test_coactivation_that_never_happened_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lambda2.*top-1 routing"):
        coactivation_similarity(torch.zeros(3, 3), "mean")


def test_small_distances_of_large_rows_survive() -> None:
    """The matrix-product form of the distance, or fp32, would call rows that differ by 1e-3 at 1e4 equal."""
    rows = torch.full((2, 64), 1e4, dtype=torch.float64)
    rows[1, 0] += 1e-3
    assert row_distance(rows)[0, 1] == pytest.approx(1e-3)


def test_weight_distances_in_pieces_equal_distances_of_whole_rows() -> None:
    """Within each of two clusters, with a common offset, which a plain matrix product would drown in."""
    generator = torch.Generator().manual_seed(0)
    weights = 1e4 + 0.01 * torch.randn(6, 1007, generator=generator, dtype=torch.float64)
    weights[3] = weights[1]
    first, second = weight_distances(torch.split(weights, 100, dim=1), [4, 2])
    np.testing.assert_allclose(first, row_distance(weights[:4]), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(second, row_distance(weights[4:]), rtol=1e-6, atol=1e-6)
