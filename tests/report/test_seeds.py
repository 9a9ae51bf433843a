"""Means and differences over calibration seeds, by hand."""

from typing import Any

import pytest

from stun_exp.report.seeds import differences_table, seeds_table


def report(name: str, seed: int, accuracy: float, passes: float = 1.0) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "settings": {"eval": {"benchmarks": {"arc": {"task": "arc", "metric": "acc,none"}}}},
        "experts": {"ratio": 0.25},
        "sparsity": {"achieved": 0.23},
        "metrics": {"arc/acc,none": {"value": accuracy, "stderr": 0.025}},
        "cost": {"experts": {"forward_passes": passes, "wall_seconds": 2.0}},
    }


REPORTS = [
    *(report("stun", seed, 0.5, passes=0) for seed in range(3)),
    *(report("best", seed, accuracy, passes=16) for seed, accuracy in enumerate([0.6, 0.5, 0.7])),
]


def test_mean_and_standard_error_by_hand() -> None:
    """0.6, 0.5 and 0.7: sd 0.1, so the error of the mean is 0.1 / sqrt 3."""
    table = seeds_table(REPORTS)
    assert table is not None
    assert table.columns == [
        "method",
        "seeds",
        "experts removed",
        "total sparsity",
        "arc (acc)",
        "passes",
        "choosing (s)",
    ]
    assert table.rows == [
        ["stun", "3", "25.0 %", "23.00 %", "50.0 ± 0.0", "0", "2.0"],
        ["best", "3", "25.0 %", "23.00 %", "60.0 ± 5.8", "16", "2.0"],
    ]


def test_differences_are_taken_seed_by_seed() -> None:
    """Both rise by 10 points with seed 1: the difference is exact, though each mean has an error."""
    reports = [report(n, s, base + 0.1 * (s == 1)) for n, base in (("a", 0.2), ("b", 0.5)) for s in (0, 1)]
    assert differences_table(reports, "b").rows == [["a", "2", "-30.0 ± 0.0"]]
    assert differences_table(reports, "a").rows == [["b", "2", "+30.0 ± 0.0"]]


def test_one_seed_each_needs_no_means() -> None:
    assert seeds_table([report("a", 0, 0.5), report("b", 1, 0.5)]) is None


def test_a_comparison_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="no run is called 'greedy'; there are stun, best"):
        differences_table(REPORTS, "greedy")
    with pytest.raises(ValueError, match="stun and other have no seed in common"):
        differences_table([*REPORTS, report("other", 7, 0.5)], "other")


def test_runs_that_their_names_do_not_tell_apart_are_not_averaged() -> None:
    """A grid of ratios under the default name: one would stand for the other in silence."""
    grid = [report("stun", seed, accuracy) for accuracy in (0.5, 0.9) for seed in (0, 1)]
    assert seeds_table(grid) is None
    with pytest.raises(ValueError, match="two runs are called 'stun' and have seed 0; tell them apart by `name`"):
        differences_table(grid, "stun")
