"""What all scores share: the best stay, equally many everywhere, and an expert without tokens has no score."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.ean import EAN
from stun_exp.expert_pruner.frequency import Frequency
from stun_exp.expert_pruner.max_activation import MaxActivation
from stun_exp.expert_pruner.random import RandomExperts
from stun_exp.expert_pruner.reap import REAP
from stun_exp.expert_pruner.router_norm import RouterNorm
from stun_exp.expert_pruner.scores import ExpertScores
from stun_exp.expert_pruner.weighted_frequency import WeightedFrequency
from stun_exp.moe.observe import Statistic, observe
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import ExpertActivity
from stun_exp.streaming.walk import Walk

Planned = Callable[..., Plan]

# Each score from the raw outputs, one token after the other.
BY_TOKEN: dict[str, tuple[ExpertScores, Callable[[list[tuple[Tensor, float]]], float]]] = {
    "frequency": (Frequency(ratio=0.5), lambda seen: len(seen)),
    "weighted_frequency": (WeightedFrequency(ratio=0.5), lambda seen: sum(g for _, g in seen)),
    "ean sum": (EAN(ratio=0.5, reduce="sum"), lambda seen: sum(length(y) for y, _ in seen)),
    "ean mean": (EAN(ratio=0.5, reduce="mean"), lambda seen: sum(length(y) for y, _ in seen) / len(seen)),
    "reap": (REAP(ratio=0.5, gate="model"), lambda seen: sum(g * length(y) for y, g in seen) / len(seen)),
    "max_activation": (MaxActivation(ratio=0.5), lambda seen: max(abs(v) for y, _ in seen for v in y.tolist())),
}
WITHOUT_DATA = [RandomExperts(ratio=0.5, seed=0), RouterNorm(ratio=0.5)]


def length(y_D: Tensor) -> float:
    return sum(value**2 for value in y_D.tolist()) ** 0.5


class Tokens(Statistic):
    """Output and gate of each token of each expert."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[Tensor, float]]] = {}

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        self.seen.setdefault(expert, []).extend(zip(y_ND.clone(), weight_N.tolist(), strict=True))


@pytest.mark.parametrize("name", BY_TOKEN)
def test_scores_of_real_layers_equal_a_loop_over_tokens(
    name: str, checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    """Two batches, one pass; guards against gates of another normalization and means over calls instead of tokens."""
    pruner, by_token = BY_TOKEN[name]
    batches_BT = list(tokens_BT.split(3))
    plan, passes = plan_and_passes(checkpoint, pruner, batches_BT)
    assert passes == 1
    for step in Walk(checkpoint, batches_BT, torch.device("cpu"), "test"):
        layer_plan = plan.of(step.layer.index)
        if layer_plan is None:
            continue
        tokens = Tokens()
        with observe(step.layer, [tokens]):
            step.forward()
        # -1 for none: Qwen2-MoE has an expert that no token reaches
        scores = [by_token(tokens.seen[expert]) if tokens.seen[expert] else -1 for expert in range(6)]
        found = [-1 if score is None else score for score in layer_plan.facts["scores"]]
        assert found == pytest.approx(scores, rel=1e-5)
        best = sorted(range(6), key=lambda e, scores=scores: -scores[e])
        assert layer_plan.kept == sorted(best[:3])


@pytest.mark.parametrize("pruner", WITHOUT_DATA, ids=["random", "router_norm"])
def test_scores_without_data_need_no_pass(
    pruner: ExpertScores, checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    plan, passes = plan_and_passes(checkpoint, pruner, [tokens_BT])
    assert passes == 0
    assert [layer.layer for layer in plan.layers] == [i for i in range(3) if checkpoint.outline(i).is_moe]
    assert all(len(layer.kept) == 3 and layer.groups == [[e] for e in layer.kept] for layer in plan.layers)


def activity(*tokens: int) -> ExpertActivity:
    statistic = ExpertActivity(len(tokens))
    statistic.count_E = torch.tensor(tokens, dtype=torch.float64)
    return statistic


def test_of_equal_scores_the_lower_index_stays(planned: Planned, source: Any) -> None:
    """Of 5, 7, 5, 5, ... tokens, half stay. Small layers would not show a sort that is not stable."""
    tokens = [5] * 64
    tokens[40] = 7
    plan = planned(Frequency(ratio=0.5), [source(0, torch.ones(64, 2))], [[activity(*tokens)]])
    assert plan.layers[0].kept == [*range(31), 40]


def test_every_group_of_a_group_limited_router_keeps_equally_many(planned: Planned, source: Any) -> None:
    """Groups {0, 1, 2} and {3, 4, 5}: the three best are all in the second, which may keep but two."""
    layer = source(0, torch.ones(6, 2), num_groups=2)
    plan = planned(Frequency(ratio=1 / 3), [layer], [[activity(1, 3, 2, 9, 8, 7)]])
    assert plan.layers[0].kept == [1, 2, 3, 4]


def test_an_expert_without_tokens_goes_first_and_is_named(planned: Planned, source: Any) -> None:
    """Its score is none, not 0: an outlier baseline or a score that can be negative would rank 0 above others."""

    class Negative(Frequency):
        def scores_E(self, layer: Any, statistics: Any) -> Tensor:
            return -super().scores_E(layer, statistics)

    layers = [source(4, torch.ones(4, 2)), source(5, torch.ones(4, 2))]
    plan = planned(Negative(ratio=0.5), layers, [[activity(3, 0, 2, 1)], [activity(1, 1, 1, 1)]])
    assert plan.layers[0].kept == [2, 3]
    facts = json.loads(json.dumps(plan.layers[0].facts))
    assert (facts["scores"], facts["ranking"]["experts"]) == ([-3, None, -2, -1], [3, 2, 0, 1])
    (warning,) = plan.warnings
    assert "layer 4: no calibration token reached expert 1:" in warning


def test_scores_that_are_no_numbers_are_refused(planned: Planned, source: Any) -> None:
    """Sorting would put NaN somewhere, and the plan would look like any other."""
    with pytest.raises(ValueError, match=r"layer 2: expert scores of NaN.*model.dtype=float32"):
        planned(RouterNorm(ratio=0.5), [source(2, torch.tensor([[1.0], [torch.nan]]))])


@pytest.mark.parametrize("name", BY_TOKEN)
def test_permuting_experts_permutes_the_plan(name: str, planned: Planned, source: Any) -> None:
    order = [3, 5, 0, 1, 4, 2]
    generator = torch.Generator().manual_seed(0)
    y, gates = torch.randn(6, 9, 4, generator=generator), torch.rand(6, 9, generator=generator)

    def plan(experts: list[int]) -> Any:
        seen = ExpertActivity(6)
        for place, expert in enumerate(experts):
            # one token less for each, so that no two counts are equal
            rows = y[expert, expert:]
            seen.expert(place, rows, rows, rows, gates[expert, expert:])
        return planned(BY_TOKEN[name][0], [source(0, torch.ones(6, 2))], [[seen]]).layers[0]

    assert plan(list(range(6))).kept == sorted(order[place] for place in plan(order).kept)


def test_ratio_zero_keeps_all(planned: Planned, source: Any) -> None:
    (layer,) = planned(RouterNorm(ratio=0.0), [source(0, torch.ones(4, 2))]).layers
    assert layer.groups == [[0], [1], [2], [3]]


@pytest.mark.parametrize("pruner", [pruner for pruner, _ in BY_TOKEN.values()], ids=BY_TOKEN)
def test_the_ranking_of_one_ratio_is_the_choice_at_every_other(
    pruner: ExpertScores, tiny_model: Callable[[str], Path], tokens_BT: Tensor, plan_and_passes: Callable[..., Any]
) -> None:
    """With a group-limited router too: the best of each group come before the second of any."""
    for family, ratios in (("mixtral", [1 / 6, 2 / 6, 3 / 6, 4 / 6]), ("glm4_moe", [2 / 6])):
        source = Checkpoint(tiny_model(family), None)
        ranked, _ = plan_and_passes(source, pruner.model_copy(update={"ratio": 0.0}), [tokens_BT])
        for ratio in ratios:
            plan, _ = plan_and_passes(source, pruner.model_copy(update={"ratio": ratio}), [tokens_BT])
            for layer, whole in zip(plan.layers, ranked.layers, strict=True):
                assert layer.ranking == whole.ranking
                assert layer.ranking is not None
                assert sorted(layer.ranking.experts) == list(range(6))
                assert layer.kept == sorted(layer.ranking.experts[: len(layer.kept)])
                assert len(layer.kept) >= layer.ranking.fewest


def test_a_ranking_by_hand(planned: Planned, source: Callable[..., Any]) -> None:
    """Lengths of rows 3, 1, 2 | 5, 4, 4: by rounds of two groups, and equal ones in their order."""
    rows_ED = torch.tensor([[3.0], [1], [2], [5], [4], [4]])
    (layer,) = planned(RouterNorm(ratio=0.0), [source(0, rows_ED, num_groups=2)]).layers
    assert layer.facts["ranking"] == {"experts": [3, 0, 4, 2, 5, 1], "fewest": 2}
    (layer,) = planned(RouterNorm(ratio=0.0), [source(0, rows_ED)]).layers
    assert layer.facts["ranking"]["experts"] == [3, 4, 5, 0, 2, 1]
