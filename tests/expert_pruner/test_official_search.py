"""The official script's search for its threshold, and the exhaustive one behind it."""

import math
from itertools import pairwise

import numpy as np
import pytest

from stun_exp.expert_pruner.stun.official_rule import OfficialRule
from stun_exp.expert_pruner.stun.official_search import OfficialLayers, nearest, search


def test_steps_double_until_the_direction_flips_then_halve() -> None:
    """From 0.5 by 0.2, 0.4, 0.8 up to 1.9; down by half of 0.8 to 1.5, by 0.2 to 1.3; up by 0.1, by 0.05 to 1.45."""
    tried: list[float] = []

    def total_at(threshold: float) -> int:
        tried.append(threshold)
        return 5 if abs(threshold - 1.45) < 0.02 else 10 if threshold < 1.45 else 1

    found = search(total_at, 5)
    assert tried == pytest.approx([0.5, 0.7, 1.1, 1.9, 1.5, 1.3, 1.4, 1.45])
    assert found == pytest.approx(1.45)


def test_it_goes_below_zero_for_negative_distances() -> None:
    tried: list[float] = []
    search(lambda threshold: tried.append(threshold) or (7 if threshold < -2 else 1), 7)  # type: ignore[func-returns-value]
    assert tried == pytest.approx([0.5, 0.3, -0.1, -0.9, -2.5])


def test_ten_equal_totals_in_a_row_give_up() -> None:
    """Router distances of large models lie far above 0.5: nothing merges until the tenth step, which is not taken."""
    tried: list[float] = []

    def total_at(threshold: float) -> int:
        tried.append(threshold)
        return 8 if threshold < 150 else 4

    assert search(total_at, 4) is None
    assert tried[-1] == pytest.approx(0.5 + 0.2 * (2**9 - 1))
    assert len(tried) == 10


def test_a_total_that_no_threshold_has_ends_too() -> None:
    assert search(lambda threshold: 8 if threshold < 0.61 else 4, 6) is None


def plane(seed: int, num_experts: int = 9) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(num_experts, 2))
    return np.asarray(np.linalg.norm(points[:, None] - points[None], axis=2))


def total(distance_EE: np.ndarray, least: int, threshold: float) -> int:
    """One layer's clusters, from a run of its own."""
    (run,) = OfficialRule([distance_EE], [least]).run([0], [threshold])
    return len(distance_EE) - len(run.heights_M)


def test_runs_cover_all_thresholds_without_gap() -> None:
    """Layers of two sizes, which are run in two batches, and one that can never merge."""
    layers = OfficialLayers([plane(3, 12), plane(4), plane(5, 12), plane(6, 2)], [2, 2, 5, 2])
    for runs in layers.everywhere():
        assert (runs[0].high, runs[-1].low) == (math.inf, -math.inf)
        assert all(upper.low == lower.high for upper, lower in pairwise(runs))
        assert len({upper.low for upper in runs}) == len(runs)


@pytest.mark.parametrize("threshold", [0.4, 0.7, 2.0])
def test_groups_merge_within_themselves_and_equally_often(threshold: float) -> None:
    """Each group makes the first merges of its own run, as many as the group that makes fewest."""
    distance_EE = plane(2, 12)
    halves = OfficialLayers([distance_EE[:6, :6], distance_EE[6:, 6:]], [2, 2])
    first, second = halves.paths(threshold)
    fewest = min(len(first.pairs), len(second.pairs))
    # A layer without groups beside it, of another size.
    path = OfficialLayers([plane(0), distance_EE], [1, 4], [1, 2]).paths(threshold)[1]
    moved = [[expert + 6 for expert in cluster] for cluster in second.clusters(fewest)]
    assert path.clusters(len(path.pairs)) == sorted(first.clusters(fewest) + moved)
    assert len(path.pairs) == 2 * fewest
    assert path.heights == sorted(path.heights)


def test_the_nearest_total_over_all_thresholds() -> None:
    """Against a fine grid: none on it comes nearer, and none in a lower stretch has the same total."""
    distances = [plane(seed) for seed in range(3)]
    layers = OfficialLayers(distances, [2, 2, 2])
    grid = np.linspace(-0.1, 6, 1000)
    totals = np.array([sum(total(d, 2, threshold) for d in distances) for threshold in grid])
    for target in range(6, 28):
        threshold = nearest(layers, target)
        here = sum(total(d, 2, threshold) for d in distances)
        assert abs(here - target) <= abs(totals - target).min()
        if here in totals:
            assert here == totals[abs(totals - target) == abs(here - target)].max()
            assert (totals[(grid >= grid[totals == here].min()) & (grid <= threshold)] == here).all()


def test_equal_distances_leave_only_two_totals() -> None:
    """All six pairs at 1: four clusters or the least allowed, two; a target of 3 is as near to both and keeps more."""
    alike = OfficialLayers([np.ones((4, 4)) - np.eye(4)], [2])
    assert [alike.total(nearest(alike, target)) for target in (2, 3, 4)] == [2, 4, 4]
    assert math.isfinite(nearest(alike, 2))


def test_layers_that_cannot_merge_have_one_total() -> None:
    layers = OfficialLayers([plane(0, 2)], [2])
    threshold = nearest(layers, 1)
    assert (layers.total(threshold), math.isfinite(threshold)) == (2, True)
