"""A plan is plain data, and cannot describe what regrouping could not do."""

from dataclasses import asdict

import pytest

from stun_exp.moe.plan import LayerPlan, Plan, keep


def test_plan_as_data_is_what_a_runtime_reads() -> None:
    """The shape of plan.json is a promise: other tools read it."""
    assert asdict(Plan([LayerPlan(3, 4, [[0], [1, 2]], [0, 2])])) == {
        "layers": [{"layer": 3, "num_experts": 4, "groups": [[0], [1, 2]], "kept": [0, 2]}]
    }


def test_groups_are_found_by_layer_number_not_by_place() -> None:
    plan = Plan([keep(1, 4, [0, 1]), keep(2, 4, [2, 3])])
    assert plan.groups(2) == [[2], [3]]
    assert plan.groups(0) is None  # a dense layer


def test_keep_sorts_by_the_original_number() -> None:
    assert keep(0, 8, [5, 1, 3]) == LayerPlan(0, 8, [[1], [3], [5]], [1, 3, 5])


@pytest.mark.parametrize(
    ("groups", "kept"),
    [
        ([[0], [0, 1]], [0, 1]),  # an expert in two groups
        ([[0], [4]], [0, 4]),  # an expert that does not exist
        ([[0], [1]], [0, 2]),  # a survivor outside its group
        ([[1], [0]], [1, 0]),  # out of order
        ([[0], [1]], [0]),  # a group without a survivor
    ],
)
def test_a_plan_that_makes_no_sense_is_caught(groups: list[list[int]], kept: list[int]) -> None:
    with pytest.raises((AssertionError, ValueError)):
        LayerPlan(0, 4, groups, kept)
