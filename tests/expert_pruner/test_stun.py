"""STUN's expert stage: each setting by hand, and what it costs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.stun.stun import STUN
from stun_exp.moe.observe import Statistic
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import Coactivation, ExpertActivity, MeanOutputs

Planned = Callable[..., Plan]

PAPER: dict[str, Any] = {
    "lambda1": 1.0,
    "lambda2": 0.0,
    "lambda_weights": 0.0,
    "lambda_outputs": 0.0,
    "router_scale": "none",
    "coactivation_scale": "mean",
    "linkage": "complete",
    "budget": "global",
    "representative": "nearest",
    "kappa": 0,
    "kappa_on": "clusters",
    "threshold": None,
    "max_removed_per_layer": None,
    "laboratory": False,
}


def stun(ratio: float, **settings: Any) -> STUN:
    return STUN(ratio=ratio, **PAPER | settings)


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def coactivation(count_EE: list[list[int]]) -> Coactivation:
    statistic = Coactivation(len(count_EE))
    statistic.count_EE = torch.tensor(count_EE, dtype=torch.float64)
    return statistic


def activity(tokens_E: list[int], gated_norm_E: list[float]) -> ExpertActivity:
    statistic = ExpertActivity(len(tokens_E))
    statistic.count_E = torch.tensor(tokens_E, dtype=torch.float64)
    statistic.gated_norm_E = torch.tensor(gated_norm_E, dtype=torch.float64)
    statistic.gate_E = statistic.count_E / 2
    return statistic


def mean_outputs(*rows: list[float]) -> MeanOutputs:
    statistic = MeanOutputs()
    statistic.sum_ED, statistic.num_tokens = torch.tensor(rows, dtype=torch.float64), 1
    return statistic


@pytest.fixture
def layer_of_five(source: Any) -> Any:
    """Router rows cluster as {0, 2, 4}, {1}, {3}; in weights, expert 4 is nearest to the mean of 0, 2 and 4."""
    return source(7, column(0, 5, 0.1, 9, 0.2), column(1, 0, 6, 0, 3))


def test_plan_keeps_representatives_in_the_original_order(planned: Planned, layer_of_five: Any) -> None:
    """Two of five go. Weights 1, 6, 3 have the mean 10/3: expert 4 represents 0 and 2, and comes last."""
    (layer,) = planned(stun(0.4), [layer_of_five]).layers
    assert (layer.layer, layer.num_experts) == (7, 5)
    assert layer.kept == [1, 3, 4]
    assert layer.groups == [[1], [3], [4]]


@pytest.mark.parametrize(("kappa", "reconstructed"), [(0, False), (3, False), (4, True)])
def test_fewer_clusters_than_kappa_become_means(
    kappa: int, reconstructed: bool, planned: Planned, layer_of_five: Any
) -> None:
    """Three clusters are fewer than 4, not than 3; the representative keeps its place in the order."""
    (layer,) = planned(stun(0.4, kappa=kappa), [layer_of_five]).layers
    assert layer.kept == [1, 3, 4]
    assert layer.groups == [[1], [3], [0, 2, 4] if reconstructed else [4]]


def test_kappa_is_the_layers_own_affair(planned: Planned, source: Any) -> None:
    """Layer 0 falls to two clusters and is reconstructed; layer 1 keeps three and is not."""
    near, far = (
        source(0, column(0, 0.01, 1, 1.01), column(1, 2, 3, 4)),
        source(1, column(0, 9, 0.02, 20), column(1, 2, 3, 4)),
    )
    plan = planned(stun(3 / 8, kappa=3), [near, far])
    assert [layer.groups for layer in plan.layers] == [[[0, 1], [2, 3]], [[0], [1], [3]]]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5])
def test_as_many_experts_go_as_the_ratio_of_the_whole_model(ratio: float, planned: Planned, source: Any) -> None:
    sources = [source(i, torch.randn(8, 4), torch.randn(8, 10), top_k=2) for i in range(3)]
    plan = planned(stun(ratio, kappa=3), sources)
    assert sum(layer.num_experts - len(layer.groups) for layer in plan.layers) == round(24 * ratio)


def test_ratio_zero_keeps_everything_even_below_kappa(planned: Planned, layer_of_five: Any) -> None:
    (layer,) = planned(stun(0.0, kappa=9), [layer_of_five]).layers
    assert layer.groups == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("kappa", [0, 9], ids=["representatives", "means"])
def test_permuting_experts_permutes_the_plan(kappa: int, planned: Planned, source: Any) -> None:
    """A line of router rows in three clusters of three: no pair, whose tie would go to the lower number."""
    rows = column(0, 0.1, 0.3, 10, 10.1, 10.3, 20, 20.1, 20.3)
    weights = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([4, 7, 0, 8, 2, 5, 1, 6, 3])
    pruner = stun(6 / 9, kappa=kappa)
    (plan,) = planned(pruner, [source(0, rows, weights)]).layers
    (permuted,) = planned(pruner, [source(0, rows[order], weights[order])]).layers
    assert len(plan.groups) == 3
    assert sorted(plan.groups) == sorted(sorted(order[group].tolist()) for group in permuted.groups)
    assert plan.kept == sorted(order[permuted.kept].tolist())


def test_lambdas_of_zero_leave_no_similarity() -> None:
    with pytest.raises(ValidationError, match="lambda1, lambda2, lambda_weights and lambda_outputs are all 0"):
        stun(0.2, lambda1=0.0)


def clusters(plan: Plan) -> list[list[list[int]]]:
    """The clusters of each layer, of which a plan names only the survivors."""
    return [layer["clusters"] for layer in plan.files["clusters.json"]["layers"]]


def test_each_term_of_the_similarity_by_hand(source: Any) -> None:
    """Three experts: rows at 0, 1, 3; coactivation 6 and 3, of mean 2; weights at 0, 4, 5; mean outputs at 0, 7, 9."""
    layer = source(0, column(0, 1, 3), column(0, 4, 5))
    statistics: list[Statistic] = [coactivation([[0, 6, 0], [6, 0, 3], [0, 3, 0]]), mean_outputs([0], [7], [9])]

    def distances(**settings: Any) -> list[float]:
        found = stun(0.2, **settings).examine(layer, statistics, 2).distance_EE
        assert (found == found.T).all()
        return [found[0, 1], found[0, 2], found[1, 2]]

    assert distances() == [1, 3, 2]
    assert distances(lambda1=2.0, router_scale="frobenius") == pytest.approx([x / 10**0.5 for x in (2, 6, 4)])
    assert distances(lambda1=0.0, lambda2=1.0) == [-3, 0, -1.5]
    assert distances(lambda1=0.0, lambda2=1.0, coactivation_scale="count") == [-6, 0, -3]
    assert distances(lambda1=0.0, lambda_weights=2.0) == pytest.approx([8, 10, 2])
    assert distances(lambda1=0.0, lambda_outputs=1.0) == [7, 9, 2]
    assert distances(lambda2=1.0, lambda_weights=1.0, lambda_outputs=0.5) == pytest.approx(
        [1 - 3 + 4 + 3.5, 3 + 5 + 4.5, 2 - 1.5 + 1 + 1]
    )


def test_coactivation_alone_makes_distances_negative_and_works(planned: Planned, source: Any) -> None:
    """The official README's Arctic setting, (0, 1): 1 and 2 are together most, then 0 and 3."""
    layer = source(0, torch.randn(4, 2), torch.randn(4, 5))
    together = coactivation([[0, 1, 1, 5], [1, 0, 9, 0], [1, 9, 0, 0], [5, 0, 0, 0]])
    for linkage in ("complete", "average", "single", "official"):
        plan = planned(stun(0.5, lambda1=0.0, lambda2=1.0, linkage=linkage), [layer], [[together]])
        assert clusters(plan) == [[[0, 3], [1, 2]]], linkage


@pytest.mark.parametrize(
    ("representative", "kept"), [("nearest", [1, 3, 4]), ("frequent", [1, 2, 3]), ("reap", [0, 1, 3])]
)
def test_who_represents_a_cluster(representative: str, kept: list[int], planned: Planned, layer_of_five: Any) -> None:
    """In {0, 2, 4}: 4 is nearest to the mean, 2 has most tokens, 0 the highest mean gated norm, 9 / 3 against 1."""
    layer_of_five.weights_EP = layer_of_five.weights_EP if representative == "nearest" else None
    statistics = [activity([3, 1, 8, 1, 8], [9, 1, 8, 1, 8])]
    (layer,) = planned(stun(0.4, representative=representative), [layer_of_five], [statistics]).layers
    assert layer.kept == kept


@pytest.mark.parametrize(("kappa", "reconstructed"), [(0, False), (3, False), (4, True)])
def test_kappa_may_count_the_members_of_a_cluster(
    kappa: int, reconstructed: bool, planned: Planned, layer_of_five: Any
) -> None:
    """The cluster of three is below 4, not below 3; single experts are their own mean."""
    (layer,) = planned(stun(0.4, kappa=kappa, kappa_on="size"), [layer_of_five]).layers
    assert layer.groups == [[1], [3], [0, 2, 4] if reconstructed else [4]]


def test_kappa_on_size_spares_the_larger_clusters(planned: Planned, source: Any) -> None:
    layer = source(0, column(0, 0.1, 0.2, 9, 9.1), column(1, 2, 3, 4, 5))
    (plan,) = planned(stun(0.6, kappa=3, kappa_on="size"), [layer]).layers
    assert plan.groups == [[1], [3, 4]]


def test_groups_that_lose_equally_many_go_by_the_layers_share(planned: Planned, source: Any) -> None:
    """Three of eight would go; two groups lose two or four."""
    grouped = source(0, torch.randn(8, 2), torch.randn(8, 3), num_groups=2)
    plan = planned(stun(0.375), [grouped])
    assert plan.warnings == []
    assert len(plan.layers[0].groups) == 4


def test_only_what_a_setting_needs_is_gathered(source: Any) -> None:
    layer = source(0, torch.ones(8, 2))

    def kinds(**settings: Any) -> list[type]:
        return [type(statistic) for statistic in stun(0.2, **settings).statistics(layer)]

    assert kinds() == kinds(lambda_weights=1.0) == []
    assert kinds(lambda2=0.5) == [Coactivation]
    assert kinds(lambda_outputs=0.5) == [MeanOutputs]
    assert kinds(representative="frequent") == kinds(representative="reap") == [ExpertActivity]
    assert kinds(laboratory=True) == [Coactivation, MeanOutputs, ExpertActivity]
    (statistic,) = stun(0.2, lambda2=0.5).statistics(layer)
    assert isinstance(statistic, Coactivation)
    assert statistic.count_EE.shape == (8, 8)


def test_distances_of_weights_read_the_experts_once(planned: Planned, source: Any) -> None:
    """The distances that make the clusters also tell who is nearest to a mean: 1, 0, 0.5 lie together, 0.5 amid."""
    layer = source(0, torch.ones(5, 1), column(1, 9, 0, 20, 0.5))
    read = []
    layer.expert_weights = lambda experts: read.append(list(experts)) or [layer.weights_EP[list(experts)]]
    (plan,) = planned(stun(0.4, lambda1=0.0, lambda_weights=1.0), [layer]).layers
    assert plan.kept == [1, 3, 4]
    assert read == [[0, 1, 2, 3, 4]]


def test_routers_alone_need_no_forward_pass(checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Any) -> None:
    """STUN's O(1): not a single pass over the model with (lambda1, lambda2) = (1, 0)."""
    plan, forward_passes = plan_and_passes(checkpoint, stun(0.25), [tokens_BT])
    assert forward_passes == 0
    assert [layer.layer for layer in plan.layers] == [i for i in range(3) if checkpoint.outline(i).is_moe]


def test_coactivation_takes_one_forward_pass(checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Any) -> None:
    plan, forward_passes = plan_and_passes(checkpoint, stun(0.25, lambda1=0.0, lambda2=1.0), [tokens_BT])
    assert 0 < forward_passes <= 1
    assert sum(layer.num_experts - len(layer.groups) for layer in plan.layers) == round(
        0.25 * sum(layer.num_experts for layer in plan.layers)
    )


@pytest.mark.parametrize("settings", [{"lambda_weights": 1.0}, {"lambda_outputs": 1.0}, {"representative": "reap"}])
def test_ablations_run_on_every_family(
    settings: dict[str, Any], checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Any
) -> None:
    """Six experts of top-2: running every expert on every token counts as three passes."""
    plan, forward_passes = plan_and_passes(checkpoint, stun(0.25, **settings), [tokens_BT])
    expected = 0 if "lambda_weights" in settings else 3 if "lambda_outputs" in settings else 1
    assert expected * 2 / 3 <= forward_passes <= expected
    gone = sum(layer.num_experts - len(layer.groups) for layer in plan.layers)
    assert gone == round(0.25 * sum(layer.num_experts for layer in plan.layers))


@pytest.mark.parametrize("representative", ["frequent", "reap"])
def test_the_order_of_merging_is_a_ranking_where_the_best_member_stands_for_a_cluster(
    representative: Any, checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    """For every ratio the experts that come first; the nearest to a mean may be another in each larger cluster."""
    ranked, _ = plan_and_passes(checkpoint, stun(0.0, representative=representative), [tokens_BT])
    for ratio in (1 / 6, 2 / 6, 3 / 6):
        pruner = stun(ratio, representative=representative, budget="per_layer")
        plan, _ = plan_and_passes(checkpoint, pruner, [tokens_BT])
        for layer, whole in zip(plan.layers, ranked.layers, strict=True):
            assert layer.ranking == whole.ranking
            assert layer.ranking is not None
            assert layer.kept == sorted(layer.ranking.experts[: len(layer.kept)])
    for settings in ({}, {"representative": "frequent", "linkage": "official"}):
        plan, _ = plan_and_passes(checkpoint, stun(0.3, **settings), [tokens_BT])
        assert all(layer.ranking is None for layer in plan.layers)


def test_where_means_begin_a_ranking_ends(source: Any, planned: Callable[..., Plan]) -> None:
    layers = [source(0, torch.tensor([[0.0], [1], [3], [7]]))]
    counts = ExpertActivity(4)
    counts.count_E = torch.tensor([4, 3, 2, 1])
    settings = {"representative": "frequent", "lambda2": 0.0}
    (layer,) = planned(stun(0.0, kappa=3, **settings), layers, [[counts]]).layers
    assert layer.facts["ranking"] == {"experts": [0, 3, 2, 1], "fewest": 3}
    (layer,) = planned(stun(0.0, kappa=3, kappa_on="size", **settings), layers, [[counts]]).layers
    assert layer.ranking is None
