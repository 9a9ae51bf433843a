"""P-values by hand and against brute force."""

from collections.abc import Sequence
from itertools import product
from math import erfc, sqrt

import numpy as np
import pytest

from stun_exp.report.tables.paired import holm, paired_p


def one_p(a: Sequence[float], b: Sequence[float]) -> float:
    return float(paired_p(np.array([a], dtype=float), np.array([b], dtype=float))[0])


def test_right_and_wrong_are_compared_by_the_exact_mcnemar_test() -> None:
    """One point alone is right on 5 items, the other on 1: P(at most 1 or at least 5 of 6 coins) = 14/64."""
    a, b = [1, 1, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1, 1, 0]
    assert one_p(a, b) == pytest.approx(14 / 64)
    assert one_p(b, a) == pytest.approx(14 / 64)
    assert one_p(a, a) == 1


def test_other_values_are_compared_by_wilcoxon_s_test_as_all_signs_would_have_it() -> None:
    """Brute force: of all 2^7 ways to give the ranks signs, how many are as far from the middle?"""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=7), generator.normal(0.8, size=7)
    ranks = np.argsort(np.argsort(np.abs(a - b))) + 1
    seen = ranks[a > b].sum()
    sums = np.array([ranks[np.array(signs)].sum() for signs in product([True, False], repeat=7)])
    middle = ranks.sum() / 2
    assert one_p(a, b) == pytest.approx((np.abs(sums - middle) >= abs(seen - middle)).mean())


def test_pairs_have_the_p_values_that_they_have_alone() -> None:
    """Right and wrong beside graded values, equal ones, and such that are no numbers; ties and many items as well."""
    generator = np.random.default_rng(1)
    for items in (9, 60):
        a = generator.integers(0, 2, (6, items)).astype(float)
        b = generator.integers(0, 2, (6, items)).astype(float)
        a[1] += generator.normal(size=items)
        a[2:4] /= 2
        b[4], b[5, 0] = a[4], np.nan
        together = paired_p(a, b)
        assert together[4] == 1
        assert np.isnan(together[5])
        assert together == pytest.approx([one_p(x, y) for x, y in zip(a, b, strict=True)], nan_ok=True)


def test_many_items_have_wilcoxon_s_normal_distribution() -> None:
    """By the formula: W against n(n+1)/4 with variance n(n+1)(2n+1)/24, of values without ties."""
    generator = np.random.default_rng(2)
    difference = generator.normal(0.2, size=80)
    ranks = np.argsort(np.argsort(np.abs(difference))) + 1
    z = (ranks[difference > 0].sum() - 80 * 81 / 4) / sqrt(80 * 81 * 161 / 24)
    assert one_p(difference, np.zeros(80)) == pytest.approx(erfc(abs(z) / sqrt(2)))


def test_holm_by_hand() -> None:
    """0.01 x 4; 0.02 x 3; 0.03 x 2, not below the one before; 0.9 x 1. NaN is no test and counts for none."""
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.4, 0.3]) == pytest.approx([0.6, 0.6])
    assert holm([float("nan"), 0.04]) == pytest.approx([float("nan"), 0.04], nan_ok=True)
    assert holm([]) == []
