"""clusters.json: small, complete, and right by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.stun.merge_path import MergePath
from stun_exp.expert_pruner.stun.stun import STUN
from stun_exp.moe.observe import Statistic
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import Coactivation, ExpertActivity, MeanOutputs

Planned = Callable[..., Plan]
CONF = Path(__file__).parents[2] / "conf" / "expert_pruner" / "stun.yaml"


def stun(**settings: Any) -> STUN:
    config: dict[str, Any] = yaml.safe_load(CONF.read_text()) | settings
    del config["_target_"]
    return STUN(**config | {"router_scale": "none"})


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def gathered(together: list[list[int]], outputs: list[float], gates: list[float]) -> list[Statistic]:
    coactivation, mean, activity = Coactivation(4), MeanOutputs(), ExpertActivity(4)
    coactivation.count_EE = torch.tensor(together, dtype=torch.float64)
    mean.sum_ED, mean.num_tokens = torch.tensor(outputs, dtype=torch.float64)[:, None], 1
    activity.gate_E = torch.tensor(gates, dtype=torch.float64)
    return [coactivation, mean, activity]


TOGETHER = [[0, 1, 5, 1], [1, 0, 1, 4], [5, 1, 0, 1], [1, 4, 1, 0]]


def test_the_document_by_hand(planned: Planned, source: Any) -> None:
    """Router rows at 0, 1, 3, 7 put {0, 1, 2} together at 1 and 3; expert 1's weights are nearest to their mean.

    Distances in it are 1, 3 and 2. The others hold 20 + 25 of the gate mass of 100. Alone, coactivation
    merges 0-2 at 5 and 1-3 at 4; outputs 0, 9, 8, 9.5 give {1, 2, 3}.
    """
    layer = source(3, column(0, 1, 3, 7), column(1, 2, 4, 8))
    statistics = gathered(TOGETHER, [0, 9, 8, 9.5], [20, 40, 25, 15])
    plan = planned(stun(ratio=0.5, laboratory=True, kappa=0), [layer], [statistics])
    document = plan.files["clusters.json"]
    (found,) = document["layers"]
    assert document["settings"]["lambda1"] == 1.0
    assert (found["layer"], found["num_experts"], found["min_experts"], found["stride"]) == (3, 4, 1, 1)
    assert found["clusters"] == [[0, 1, 2], [3]]
    assert (found["kept"], found["sizes"], found["threshold"]) == ([1, 3], [3, 1], 3.0)
    assert found["heights"] == [1, 3, 7]
    assert found["within"] == {"mean": 2.0, "max": 3.0}
    assert found["gate_mass"] == pytest.approx([0.2, 0.4, 0.25, 0.15])
    assert found["mass_moved"] == pytest.approx(0.45)
    assert found["alone"]["router"] == [[0, 1, 2], [3]]
    assert found["alone"]["outputs"] == [[0], [1, 2, 3]]
    assert found["alone"]["coactivation"] == [[0, 2], [1, 3]]
    assert found["alone"]["weights"] == [[0, 1, 2], [3]]
    path = MergePath(4, [tuple(pair) for pair in found["pairs"]], found["heights"])
    assert path.clusters(2) == found["clusters"]


def test_correlations_of_distances_by_hand(planned: Planned, source: Any) -> None:
    """Pairs 01 02 03 12 13 23 are 1 3 7 2 6 4 apart in the router: ranks 1 3 6 2 5 4.

    Weights are 1 3 7 2 6 4 apart too. Coactivation counts 1 5 1 1 4 1: ranks, the most first, 4.5 1 4.5 4.5 2 4.5, so
    that with deviations from 3.5 the products sum to -2.5 + 1.25 + 2.5 - 1.5 - 2.25 + 0.5 = -2, over
    sqrt(17.5 * 12.5).
    """
    layer = source(3, column(0, 1, 3, 7), column(1, 2, 4, 8))
    statistics = gathered(TOGETHER, [0, 1, 3, 7], [20, 40, 25, 15])
    (found,) = planned(stun(ratio=0.5, laboratory=True), [layer], [statistics]).files["clusters.json"]["layers"]
    expected = -2 / (17.5 * 12.5) ** 0.5
    assert {name: value for name, value in found["correlation"].items() if "coactivation" not in name} == pytest.approx(
        dict.fromkeys(["distance-router", "distance-outputs", "distance-weights", "router-outputs"], 1)
        | dict.fromkeys(["router-weights", "outputs-weights"], 1)
    )
    of_coactivation = {name: value for name, value in found["correlation"].items() if "coactivation" in name}
    assert len(of_coactivation) == 4
    assert of_coactivation == pytest.approx(dict.fromkeys(of_coactivation, expected))


def test_a_laboratory_moves_no_choice(planned: Planned, source: Any) -> None:
    """Not even between members equally near to the mean, where rounding would have a say."""
    rows, weights = torch.randn(8, 3), torch.randn(8, 5)
    everything = [Coactivation(8), MeanOutputs(), ExpertActivity(8)]
    everything[0].count_EE = torch.ones(8, 8, dtype=torch.float64).fill_diagonal_(0)
    everything[1].sum_ED, everything[1].num_tokens = torch.randn(8, 2).double(), 1
    everything[2].gate_E = torch.ones(8, dtype=torch.float64)
    plain = planned(stun(ratio=0.5), [source(0, rows, weights)])
    assert planned(stun(ratio=0.5, laboratory=True), [source(0, rows, weights)], [everything]).layers == plain.layers


def test_without_the_laboratory_nothing_more_is_said_than_is_known(planned: Planned, source: Any) -> None:
    layer = source(0, column(0, 1, 3, 7), column(1, 2, 4, 8))
    (found,) = planned(stun(ratio=0.25), [layer]).files["clusters.json"]["layers"]
    assert (found["gate_mass"], found["mass_moved"], found["alone"], found["correlation"]) == (None, None, {}, {})
    (whole,) = planned(stun(ratio=0.0), [layer]).files["clusters.json"]["layers"]
    assert (whole["within"], whole["threshold"]) == (None, None)


def test_experts_never_active_together_are_told(planned: Planned, source: Any) -> None:
    """Top-1 routing: coactivation says nothing, which must not stop the rest."""
    layer = source(5, column(0, 1, 3, 7), column(1, 2, 4, 8))
    plan = planned(stun(ratio=0.25, laboratory=True), [layer], [gathered([[0] * 4] * 4, [0, 9, 8, 9.5], [1, 1, 1, 1])])
    (warning,) = plan.warnings
    assert warning.startswith("layer 5: clusters.json has no clusters by coactivation: no two experts were ever")
    (found,) = plan.files["clusters.json"]["layers"]
    assert found["alone"]["coactivation"] is None
    assert found["correlation"]["distance-coactivation"] is None
    assert found["correlation"]["distance-router"] == pytest.approx(1)


@pytest.mark.parametrize("linkage", ["complete", "official"])
def test_every_family_gets_a_document_that_json_can_hold(
    linkage: str, checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    """At the run's number of clusters each, even under the official rule, which cannot make any number."""
    plan, _ = plan_and_passes(checkpoint, stun(ratio=0.25, laboratory=True, linkage=linkage), [tokens_BT])
    document = json.loads(json.dumps(plan.files["clusters.json"], allow_nan=False))
    assert document["alone_linkage"] == "complete"
    for layer in document["layers"]:
        assert sum(layer["gate_mass"]) == pytest.approx(1)
        assert {len(clusters) for clusters in layer["alone"].values()} == {len(layer["kept"])}
        assert sum(layer["sizes"]) == layer["num_experts"]
