"""REAP's code and its baselines, and the thresholds below which Lu et al. skip an expert."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.ean import EAN
from stun_exp.expert_pruner.frequency import Frequency
from stun_exp.expert_pruner.max_activation import MaxActivation
from stun_exp.expert_pruner.reap import REAP
from stun_exp.expert_pruner.softmax_gate import SoftmaxActivity
from stun_exp.expert_pruner.weighted_frequency import WeightedFrequency
from stun_exp.moe.plan import LayerPlan
from stun_exp.moe.skip import GateRatios
from stun_exp.moe.statistics import ExpertActivity
from stun_exp.skipping.dynamic import DynamicSkipping

Golden = Callable[[str], Any]
Build = Callable[..., Any]
# Our pruner, its settings, the published metric, and under which gate: the model's renormalizes the chosen two.
SCORES = {
    "frequency": (Frequency, {}, "expert_frequency", "renorm_false"),
    "weighted_frequency": (WeightedFrequency, {}, "weighted_expert_frequency_sum", "renorm_true"),
    "ean sum": (EAN, {"reduce": "sum"}, "ean_sum", "renorm_false"),
    "ean mean": (EAN, {"reduce": "mean"}, "ean_mean", "renorm_false"),
    "reap": (REAP, {"gate": "model"}, "reap", "renorm_true"),
    "reap softmax": (REAP, {"gate": "softmax"}, "reap", "renorm_false"),
}


def planned(choice: str, ratio: float, layer: Any, activity: dict[Any, Any], configured: Build) -> LayerPlan:
    kind, settings, _, _ = SCORES[choice]
    pruner = configured(kind, f"expert_pruner/{choice.split()[0]}", ratio=ratio, **settings)
    (wanted,) = pruner.statistics(layer)
    plan: LayerPlan = pruner.examine(layer, [activity[type(wanted)]], round(8 * (1 - ratio)))
    return plan


@pytest.mark.parametrize("choice", SCORES)
def test_scores(
    choice: str, published: Checkpoint, activity: list[dict[Any, Any]], golden: Golden, configured: Build
) -> None:
    """Sums in fp64 here and in fp32 there. An expert without a token has a score of 0 there and none here."""
    _, _, metric, gate = SCORES[choice]
    for index, expected in enumerate(golden("reap")[gate]):
        plan = planned(choice, 0.5, published.outline(index), activity[index], configured)
        scores = [score or 0.0 for score in plan.facts["scores"]]
        assert scores == pytest.approx(expected[metric], rel=1e-6)


@pytest.mark.parametrize("choice", SCORES)
@pytest.mark.parametrize("removed", [2, 4])
def test_who_goes(
    choice: str,
    removed: int,
    published: Checkpoint,
    activity: list[dict[Any, Any]],
    golden: Golden,
    configured: Build,
) -> None:
    _, _, metric, gate = SCORES[choice]
    for index, layer in enumerate(golden("reap")[gate]):
        expected = layer["pruned"][metric][str(removed)]
        assert not expected["tie_at_cut"]
        plan = planned(choice, removed / 8, published.outline(index), activity[index], configured)
        assert sorted(set(range(8)) - set(plan.kept)) == expected["experts"]


def test_the_two_gates_remove_other_experts(
    published: Checkpoint, activity: list[dict[Any, Any]], configured: Build
) -> None:
    """In layer 0 the model's gate lets 6 and 7 go, the softmax 5 and 6: what the setting is there for."""
    gone = {}
    for choice in ("reap", "reap softmax"):
        plan = planned(choice, 0.25, published.outline(0), activity[0], configured)
        gone[choice] = sorted(set(range(8)) - set(plan.kept))
    assert gone == {"reap": [6, 7], "reap softmax": [5, 6]}


def test_the_softmax_gates_sum(activity: list[dict[Any, Any]], golden: Golden) -> None:
    """Its share of the router's trust in each expert, which the model's two gates exceed by a half and more."""
    for layer, expected in zip(activity, golden("reap")["renorm_false"], strict=True):
        softmax_E = layer[SoftmaxActivity].gate_E
        assert softmax_E.tolist() == pytest.approx(expected["weighted_expert_frequency_sum"], rel=1e-6)
        assert float(layer[ExpertActivity].gate_E.sum() / softmax_E.sum()) > 1.3


def test_the_largest_activation_may_be_negative(
    published: Checkpoint, activity: list[dict[Any, Any]], golden: Golden, configured: Build
) -> None:
    """Published, the largest signed entry counts. Ours is never less, and more for half of the experts."""
    pruner = configured(MaxActivation, "expert_pruner/max_activation", ratio=0.5)
    higher = 0
    for index, expected in enumerate(golden("reap")["renorm_false"]):
        scores_E = pruner.scores_E(published.outline(index), [activity[index][ExpertActivity]])
        excess_E = scores_E - torch.tensor(expected["max_activations"], dtype=torch.float64)
        assert float(excess_E.min()) > -1e-3  # rounding is below 1e-4, and 0.03 the least of what is more
        higher += int((excess_E > 1e-3).sum())
    assert higher == 12


def test_betas_of_dynamic_skipping(activity: list[dict[Any, Any]], golden: Golden) -> None:
    """The median over 1,024 tokens, the mean of the two in the middle; torch's lower one is 1e-4 to 5e-4 below it."""
    for layer, expected in zip(activity, golden("lu")["betas"], strict=True):
        ratios = layer[GateRatios]
        assert DynamicSkipping().beta(ratios) == pytest.approx(expected, rel=1e-5)
        assert float(ratios.ratio_TI()[:, -1].median()) < expected - 5e-5
