"""HC-SMoE: clusters against naive agglomeration, and merges weighted by tokens."""

from collections.abc import Callable
from itertools import combinations
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.hc_smoe import HCSMoE
from stun_exp.moe.observe import observe
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertTokens, MeanOutputs
from stun_exp.streaming.walk import Walk

Planned = Callable[..., Plan]
LINKAGES: dict[Any, Callable[[list[float]], float]] = {"average": mean, "complete": max, "single": min}


def hc_smoe(ratio: float, linkage: Any = "average", distance: Any = "euclidean") -> HCSMoE:
    return HCSMoE(ratio=ratio, linkage=linkage, distance=distance)


def gathered(tokens: list[int], mean_ED: Tensor) -> list[Any]:
    """Two tokens with the same outputs."""
    count, outputs = ExpertTokens(len(tokens)), MeanOutputs()
    count.count_E = torch.tensor(tokens)
    outputs.all_experts(mean_ED[:, None].repeat(1, 2, 1), torch.empty(0), torch.empty(0), torch.empty(0))
    return [count, outputs]


def nine_mean_outputs() -> Tensor:
    """Lengths vary by an order of magnitude, so that the two distances disagree."""
    return torch.randn(9, 3, generator=torch.Generator().manual_seed(2)) * torch.logspace(-0.5, 0.5, 9)[:, None]


def agglomerate(rows: list[list[float]], num_clusters: int, linkage: str, distance: str) -> list[list[int]]:
    """The oracle: again and again merge the two nearest clusters, with distances of members worked out anew."""

    def apart(a: list[float], b: list[float]) -> float:
        if distance == "euclidean":
            return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return 1 - dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5

    clusters = [[expert] for expert in range(len(rows))]
    while len(clusters) > num_clusters:
        left, right = min(
            combinations(clusters, 2),
            key=lambda pair: LINKAGES[linkage]([apart(rows[i], rows[j]) for i in pair[0] for j in pair[1]]),
        )
        clusters = [c for c in clusters if c not in (left, right)] + [left + right]
    return sorted(sorted(cluster) for cluster in clusters)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("linkage", LINKAGES)
def test_clusters_equal_naive_agglomeration(linkage: str, distance: str, planned: Planned, source: Any) -> None:
    """Every number of clusters, every choice of linkage and distance."""
    mean_ED = nine_mean_outputs()
    tokens = list(range(9, 0, -1))
    for num_kept in range(1, 10):
        pruner = hc_smoe((9 - num_kept) / 9, linkage, distance)
        (layer,) = planned(pruner, [source(0, torch.ones(9, 2))], [gathered(tokens, mean_ED)]).layers
        # the lowest index has the most tokens, so the order by survivor is the order of the clusters
        assert layer.groups == agglomerate(mean_ED.tolist(), num_kept, linkage, distance)
        assert layer.kept == [group[0] for group in layer.groups]


def test_distances_and_linkages_are_not_all_the_same() -> None:
    """Guards the test above: on its data every choice matters."""
    mean_ED = nine_mean_outputs()
    results = {
        tuple(str(agglomerate(mean_ED.tolist(), n, linkage, distance)) for n in range(1, 10))
        for linkage in LINKAGES
        for distance in ("euclidean", "cosine")
    }
    assert len(results) == 6


def test_merges_are_weighted_by_tokens_and_led_by_the_most_used(planned: Planned, source: Any) -> None:
    """Mean outputs 0, 10, 1, 11, tokens 1, 5, 3, 15: clusters {0, 2} and {1, 3} in shares of 1/4 and 3/4."""
    mean_ED = torch.tensor([[0.0], [10.0], [1.0], [11.0]])
    (layer,) = planned(hc_smoe(0.5), [source(0, torch.ones(4, 2))], [gathered([1, 5, 3, 15], mean_ED)]).layers
    assert layer.groups == [[0, 2], [1, 3]]
    assert layer.kept == [2, 3]
    assert layer.weights == [[0.25, 0.75], [0.25, 0.75]]
    assert not layer.aligned


def test_groups_are_ordered_by_survivor(planned: Planned, source: Any) -> None:
    """Cluster {0, 3} is led by 3, so it comes after {1, 2}, led by 1: order by members would put it first."""
    mean_ED = torch.tensor([[0.0], [10.0], [10.0], [0.0]])
    (layer,) = planned(hc_smoe(0.5), [source(0, torch.ones(4, 2))], [gathered([1, 5, 3, 15], mean_ED)]).layers
    assert (layer.groups, layer.kept) == ([[1, 2], [0, 3]], [1, 3])


def test_a_cluster_without_any_token_is_the_plain_mean(planned: Planned, source: Any) -> None:
    """0 / 0 would be NaN; in the other cluster the expert without tokens has no weight. All three are named."""
    mean_ED = torch.tensor([[0.0], [0.1], [10.0], [10.1]])
    plan = planned(hc_smoe(0.5), [source(2, torch.ones(4, 2))], [gathered([0, 0, 7, 0], mean_ED)])
    assert plan.layers[0].weights == [[0.5, 0.5], [1.0, 0.0]]
    assert plan.layers[0].kept == [0, 2]
    (warning,) = plan.warnings
    assert "layer 2: no calibration token reached expert 0, 1, 3:" in warning


def test_an_expert_without_tokens_that_stays_alone_is_as_good_as_any(planned: Planned, source: Any) -> None:
    """Nothing was weighted by its tokens, so there is nothing to warn of."""
    mean_ED = torch.tensor([[0.0], [0.1], [10.0]])
    plan = planned(hc_smoe(1 / 3), [source(2, torch.ones(3, 2))], [gathered([2, 1, 0], mean_ED)])
    assert plan.layers[0].groups == [[0, 1], [2]]
    assert plan.warnings == []


def test_clusters_stay_within_the_groups_of_a_group_limited_router(planned: Planned, source: Any) -> None:
    """Nearest are 1 and 2, of different groups."""
    mean_ED = torch.tensor([[0.0], [4.0], [4.1], [9.0]])
    layer = source(0, torch.ones(4, 2), num_groups=2)
    (plan,) = planned(hc_smoe(0.5), [layer], [gathered([4, 3, 2, 1], mean_ED)]).layers
    assert plan.groups == [[0, 1], [2, 3]]


def test_equal_distances_still_give_as_many_clusters_as_asked(planned: Planned, source: Any) -> None:
    """The corners of a simplex: a cut by height would take all merges at once, or none."""
    for num_kept in range(1, 7):
        plan = planned(hc_smoe(1 - num_kept / 6), [source(0, torch.ones(6, 2))], [gathered([1] * 6, torch.eye(6))])
        assert len(plan.layers[0].groups) == num_kept


def test_an_expert_that_gives_nothing_has_a_cosine_distance(planned: Planned, source: Any) -> None:
    """Cosine with the zero vector is 0 / 0; it counts as 1 from all, so it is merged last."""
    mean_ED = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 0.0], [0.5, 1.0]])
    (layer,) = planned(
        hc_smoe(0.5, distance="cosine"), [source(0, torch.ones(4, 2))], [gathered([4, 3, 2, 1], mean_ED)]
    ).layers
    assert layer.groups == [[0, 1, 3], [2]]


def test_outputs_that_are_no_numbers_are_refused(planned: Planned, source: Any) -> None:
    mean_ED = torch.tensor([[1.0], [torch.inf], [0.0]])
    with pytest.raises(ValueError, match=r"layer 2: mean expert outputs of NaN or infinity"):
        planned(hc_smoe(1 / 3), [source(2, torch.ones(3, 2))], [gathered([1, 1, 1], mean_ED)])


def test_permuting_experts_permutes_the_plan(planned: Planned, source: Any) -> None:
    order, tokens = [3, 5, 0, 1, 4, 2], [4, 9, 2, 7, 1, 6]
    mean_ED = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    layer = source(0, torch.ones(6, 2))
    (plan,) = planned(hc_smoe(0.5), [layer], [gathered(tokens, mean_ED)]).layers
    (permuted,) = planned(hc_smoe(0.5), [layer], [gathered([tokens[e] for e in order], mean_ED[order])]).layers
    assert sorted(plan.groups) == sorted(sorted(order[place] for place in group) for group in permuted.groups)
    assert plan.kept == sorted(order[place] for place in permuted.kept)


def test_real_layers_cost_every_expert_on_every_token(
    checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    """A layer with experts counts for num_experts / top_k = 3 passes, the dense one of Qwen2-MoE for one."""
    batches_BT = list(tokens_BT.split(3))
    plan, passes = plan_and_passes(checkpoint, hc_smoe(0.5), batches_BT)
    assert passes == (3 if len(plan.layers) == 3 else pytest.approx((1 + 3 + 3) / 3))
    for step in Walk(checkpoint, batches_BT, torch.device("cpu"), "test"):
        layer_plan = plan.of(step.layer.index)
        if layer_plan is None:
            continue
        count = ExpertTokens(6)
        inputs: list[Tensor] = []
        hook = step.layer.experts.register_forward_pre_hook(lambda _, args, seen=inputs: seen.append(args[0]))
        with observe(step.layer, [count]):
            step.forward()
        hook.remove()
        x_TD = torch.cat(inputs)
        alone = [step.layer.experts(x_TD, torch.full((len(x_TD), 1), e), torch.ones(len(x_TD), 1)) for e in range(6)]
        by_hand = agglomerate([y_TD.double().mean(0).tolist() for y_TD in alone], 3, "average", "euclidean")
        assert sorted(layer_plan.groups) == by_hand
        assert layer_plan.facts["tokens"] == count.count_E.tolist()
