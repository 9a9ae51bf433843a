"""Differences over calibration seeds, by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from stun_exp.report.tables.seeds import differences_table

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def reports(make_report: Make) -> list[dict[str, Any]]:
    return [
        *(make_report("stun", 0.5, seed=seed) for seed in range(3)),
        *(make_report("best", accuracy, seed=seed) for seed, accuracy in enumerate([0.6, 0.5, 0.7])),
    ]


def test_differences_are_taken_seed_by_seed(make_report: Make) -> None:
    """Both rise by 10 points with seed 1: the difference is exact, though each mean has an error."""
    both = [make_report(n, base + 0.1 * (s == 1), seed=s) for n, base in (("a", 0.2), ("b", 0.5)) for s in (0, 1)]
    assert differences_table(both, "b").rows == [["a", "2", "-30.0 ± 0.0"]]
    assert differences_table(both, "a").rows == [["b", "2", "+30.0 ± 0.0"]]


def test_a_comparison_that_cannot_be_made_is_refused(reports: list[dict[str, Any]], make_report: Make) -> None:
    with pytest.raises(ValueError, match="no run is called 'greedy'; there are stun, best"):
        differences_table(reports, "greedy")
    with pytest.raises(ValueError, match="stun and other have no seed in common"):
        differences_table([*reports, make_report("other", seed=7)], "other")


def test_runs_that_their_names_do_not_tell_apart_have_no_difference(make_report: Make) -> None:
    """A grid of ratios under one name: one would stand for the other in silence."""
    grid = [make_report("stun", seed=s, **{"expert_pruner.ratio": r}) for r in (0.1, 0.2) for s in (0, 1)]
    with pytest.raises(ValueError, match="two runs are called 'stun' and have seed 0; tell them apart by `name`"):
        differences_table(grid, "stun")
