"""P-values of pairs on the same items."""

from collections.abc import Sequence
from math import nan
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_EXACT = 50
"""Items up to which Wilcoxon's distribution is the exact one: scipy's own limit, which it would lower for ties."""


def paired_p(a_PI: "NDArray[np.float64]", b_PI: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Two-sided p-values of pairs on the same items: exact McNemar of 0 and 1, else Wilcoxon; all pairs at once.

    McNemar's is the sign test of the items that one point alone gets right. Wilcoxon's leaves out equal values too; its
    distribution is exact up to 50 items, as if there were no ties, and normal beyond.

    Args:
        a_PI: One point's values in P pairs on I items.
        b_PI: The other's.

    Returns:
        P of them; NaN where a value is no number.
    """
    import numpy as np
    from scipy.stats import binomtest, wilcoxon

    p = np.ones(len(a_PI))
    differing = (a_PI != b_PI).any(axis=1)
    binary = (np.isin(a_PI, (0, 1)) & np.isin(b_PI, (0, 1))).all(axis=1)
    wins, losses = (a_PI > b_PI).sum(axis=1), (a_PI < b_PI).sum(axis=1)
    for pair in np.flatnonzero(differing & binary):
        p[pair] = binomtest(wins[pair], wins[pair] + losses[pair]).pvalue
    finite = np.isfinite(a_PI).all(axis=1) & np.isfinite(b_PI).all(axis=1)
    p[~finite] = nan
    graded = differing & finite & ~binary
    if graded.any():
        method = "exact" if a_PI.shape[1] <= MOST_EXACT else "asymptotic"
        p[graded] = wilcoxon(a_PI[graded], b_PI[graded], zero_method="wilcox", method=method, axis=1).pvalue
    return p


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after Holm's step-down correction (1979), in the same order; NaN is no test and stays NaN."""
    order = sorted((i for i, p in enumerate(p_values) if p == p), key=lambda i: p_values[i])
    corrected, largest = [nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
