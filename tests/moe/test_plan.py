"""A plan is plain data, and cannot describe what regrouping could not do."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stun_exp.moe.plan import LayerPlan, Plan, keep, plan_id, plan_json, retained_experts, router_digest


def test_plan_as_data_is_what_a_runtime_reads() -> None:
    """The shape of plan.json is a promise: other tools read it."""
    layer = LayerPlan(3, 4, [[0], [1, 2]], [0, 2], weights=[[1.0], [0.25, 0.75]], facts={"loss": 2.5})
    assert plan_json(Plan([layer]), {3: "c0ffee"}) == {
        "layers": [
            {
                "layer": 3,
                "num_experts": 4,
                "groups": [[0], [1, 2]],
                "kept": [0, 2],
                "weights": [[1.0], [0.25, 0.75]],
                "aligned": False,
                "facts": {"loss": 2.5},
                "clusters": None,
                "router": "c0ffee",
            }
        ]
    }


def test_a_profile_for_runtimes_says_whether_dropping_is_enough() -> None:
    dropped, merged = keep(1, 4, [0, 3]), LayerPlan(3, 4, [[0], [1, 2]], [0, 2])
    assert retained_experts(Plan([dropped]), "mixtral") == {
        "model_type": "mixtral",
        "num_experts": {"1": 4},
        "retained_experts": {"1": [0, 3]},
        "exact": True,
    }
    assert retained_experts(Plan([dropped, merged]), "mixtral")["exact"] is False


def test_router_digest_is_the_models_not_the_precisions() -> None:
    """16-bit weights read in 32 bits are the same weights."""
    rows = torch.randn(4, 8).bfloat16()
    assert router_digest(rows) == router_digest(rows.float())
    assert router_digest(rows) != router_digest(rows.flip(0))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"facts": {"loss": 2.5}}, True),
        ({"clusters": [[0, 3], [1, 2]]}, True),
        ({"num_experts": 5}, False),
        ({"layer": 2}, False),
        ({"groups": [[0], [1]], "weights": None}, False),
        ({"kept": [0, 2]}, False),
        ({"weights": [[1.0], [0.5, 0.5]]}, False),
        ({"aligned": True}, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_a_plan_s_id_is_what_it_does_to_the_model(change: dict[str, Any], same: bool) -> None:
    """How a choice came about, and what is said of it, makes no other plan."""
    layer = LayerPlan(3, 4, [[0], [1, 2]], [0, 1], weights=[[1.0], [0.25, 0.75]])
    own = plan_id(Plan([layer]))
    assert len(own) == 8
    assert own == plan_id(Plan([layer], ["a warning"], {"clusters.json": {}}, {"distances.npz": ""}))
    assert (own == plan_id(Plan([replace(layer, **change)]))) is same


def test_plans_are_found_by_layer_number_not_by_place() -> None:
    plan = Plan([keep(1, 4, [0, 1]), keep(2, 4, [2, 3])])
    assert plan.of(2) == keep(2, 4, [2, 3])
    assert plan.of(0) is None  # a dense layer


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


@pytest.mark.parametrize(
    "clusters",
    [
        [[0, 3]],  # a kept expert without a cluster
        [[0], [2, 3]],  # an expert outside its kept one's cluster
        [[0, 1], [1, 2]],  # an expert in two
        [[0, 4], [1, 2]],  # an expert that does not exist
    ],
)
def test_clusters_that_make_no_sense_are_caught(clusters: list[list[int]]) -> None:
    LayerPlan(0, 4, [[0], [1]], [0, 1], clusters=[[0, 3], [1, 2]])
    with pytest.raises((AssertionError, ValueError)):
        LayerPlan(0, 4, [[0], [1]], [0, 1], clusters=clusters)
