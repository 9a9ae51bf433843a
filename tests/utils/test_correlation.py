"""Rank correlation, by hand."""

import numpy as np
import pytest

from stun_exp.utils.correlation import rank_correlation


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15) = 0.8. Values between do not count."""
    assert rank_correlation(np.array([0.0, 1, 2, 3]), np.array([-5.0, 7, 6, 1000])) == pytest.approx(0.8)
    assert rank_correlation(np.array([0.0, 1, 2]), np.array([3.0, 2, 1])) == pytest.approx(-1)


def test_equal_numbers_share_their_rank() -> None:
    """1.5 1.5 3 against 1 2 3: deviations (-0.5, -0.5, 1) and (-1, 0, 1), 1.5 / sqrt(1.5 * 2)."""
    assert rank_correlation(np.array([7.0, 7, 8]), np.array([1.0, 2, 3])) == pytest.approx(1.5 / 3**0.5)


def test_where_nothing_differs_there_is_no_order() -> None:
    assert rank_correlation(np.array([1.0, 1, 1]), np.array([1.0, 2, 3])) is None
    assert rank_correlation(np.array([1.0]), np.array([2.0])) is None
