"""How far two lists of numbers have one order."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def rank_correlation(one: "np.ndarray", other: "np.ndarray") -> float | None:
    """Spearman's: 1 for the same order, 0 on average for unrelated ones; None where all numbers of a list are equal."""
    import numpy as np
    from scipy.stats import rankdata

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])
