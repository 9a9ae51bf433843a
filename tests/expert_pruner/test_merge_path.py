"""One path serves every budget and every threshold."""

import pytest

from stun_exp.expert_pruner.stun.merge_path import MergePath, cut_globally
from stun_exp.expert_pruner.stun.representative import highest_members

# 0-1 at 1, 2-3 at 2, {0, 1}-4 at 4 (named by expert 1), then everything at 8.
PATH = MergePath(5, [(0, 1), (2, 3), (1, 4), (3, 0)], [1.0, 2.0, 4.0, 8.0])


def test_clusters_after_each_merge_by_hand() -> None:
    """The third merge names expert 1 and must bring 0 along."""
    assert [PATH.clusters(n) for n in range(5)] == [
        [[0], [1], [2], [3], [4]],
        [[0, 1], [2], [3], [4]],
        [[0, 1], [2, 3], [4]],
        [[0, 1, 4], [2, 3]],
        [[0, 1, 2, 3, 4]],
    ]


@pytest.mark.parametrize("scores", [[5, 1, 7, 5, 7], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
def test_survivors_in_order_are_those_of_every_cut(scores: list[float]) -> None:
    ranked = PATH.survivors_in_order(scores)
    for merges in range(5):
        assert sorted(ranked[: 5 - merges]) == sorted(highest_members(PATH.clusters(merges), scores))


def test_survivors_in_order_by_hand() -> None:
    """1 joins 0, 3 joins 2, then 0 joins 4, and 4, of the same score as 2, joins it."""
    assert PATH.survivors_in_order([5, 1, 7, 5, 7]) == [2, 4, 0, 3, 1]


@pytest.mark.parametrize(("threshold", "merges"), [(0.5, 0), (1.0, 1), (3.9, 2), (4.0, 3), (100.0, 4)])
def test_a_threshold_takes_the_merges_at_or_below_it(threshold: float, merges: int) -> None:
    assert PATH.num_merges(threshold) == merges
    assert PATH.num_merges(threshold, min_clusters=3) == min(merges, 2)


def test_one_threshold_means_that_alike_layers_lose_more() -> None:
    """Heights 1 2 4 8 and 3 5: the lowest four are 1, 2, 3, 4."""
    other = MergePath(3, [(0, 1), (0, 2)], [3.0, 5.0])
    assert [cut_globally([PATH, other], [1, 1], n) for n in range(7)] == [
        [0, 0],
        [1, 0],
        [2, 0],
        [2, 1],
        [3, 1],
        [3, 2],
        [4, 2],
    ]
    assert cut_globally([PATH, other], [3, 1], 4) == [2, 2]  # the first layer may not go below 3


def test_equal_heights_are_taken_layer_by_layer() -> None:
    """All distances alike: any choice is as good, so it must be the same on every machine."""
    alike = [MergePath(3, [(0, 1), (0, 2)], [1.0, 1.0])] * 2
    assert [cut_globally(alike, [1, 1], n) for n in range(5)] == [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]]


@pytest.mark.parametrize(("asked", "got"), [(1, 0), (2, 2), (3, 2), (4, 4), (5, 4), (6, 6)])
def test_where_groups_lose_equally_many_the_nearest_total_is_taken(asked: int, got: int) -> None:
    """Steps of two merges: of two totals as near, the one that removes fewer."""
    grouped = MergePath(8, [(0, 1), (4, 5), (2, 3), (6, 7), (0, 2), (4, 6)], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0], stride=2)
    assert cut_globally([grouped], [2], asked) == [got]
    assert grouped.most_merges(3) == 4


def test_more_than_top_k_allows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 experts are to go, but only 4 can.*keeps 3; lower expert_pruner.ratio"):
        cut_globally([PATH, PATH], [3, 3], 5)
