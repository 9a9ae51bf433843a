"""One expert at a time, against one forward pass for each candidate."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.reconstruction.greedy_reconstruction import GreedyReconstruction
from stun_exp.moe.plan import Plan
from stun_exp.streaming.walk import Step, Walk

GREEDY = GreedyReconstruction(ratio=0.5, progressive=False, chunk_tokens=50)


def one_at_a_time(checkpoint: Checkpoint, batches_BT: list[Tensor], num_removed: int) -> dict[int, list[int]]:
    """The oracle: layer -> kept experts; the change is that of the whole decoder layer's output."""
    kept: dict[int, list[int]] = {}
    for step in Walk(checkpoint, batches_BT, torch.device("cpu"), "test"):
        step.forward()
        targets = step.outputs_BTD or []
        left = list(range(step.layer.num_experts))
        for _ in range(num_removed if step.layer.is_moe else 0):
            losses = []
            for expert in left:
                layer = checkpoint.read_layer(step.layer.index)
                layer.regroup([[other] for other in left if other != expert])
                trial = Step(layer, step.hidden_BTD, step.arguments)
                trial.forward()
                changes = [(a - b).double().norm() for a, b in zip(trial.outputs_BTD or [], targets, strict=True)]
                losses.append((float(sum(changes)), expert))
            left.remove(min(losses)[1])
        if step.layer.is_moe:
            kept[step.layer.index] = left
    return kept


def test_same_choices_as_a_forward_pass_for_each_candidate(
    checkpoint: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    """Every family: after each removal the routing has changed, and the next loss must see that."""
    batches_BT = list(tokens_BT.split(2))
    plan, passes = plan_and_passes(checkpoint, GREEDY, batches_BT)
    assert {layer.layer: layer.kept for layer in plan.layers} == one_at_a_time(checkpoint, batches_BT, 3)
    assert passes <= 3  # each of 6 experts once, instead of the 2 of top-2


def test_losses_computed_are_those_of_every_candidate(
    mixtral: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    plan, _ = plan_and_passes(mixtral, GREEDY, [tokens_BT])
    assert all(layer.facts["losses_computed"] == 6 + 5 + 4 for layer in plan.layers)


@pytest.mark.parametrize("progressive", [False, True])
def test_loss_is_never_below_the_best(
    mixtral: Checkpoint, tokens_BT: Tensor, progressive: bool, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    """In the first layer, where both see the same inputs."""
    from stun_exp.expert_pruner.reconstruction.exhaustive import Exhaustive

    shared = {"ratio": 0.5, "progressive": progressive, "chunk_tokens": 50}
    greedy, _ = plan_and_passes(mixtral, GreedyReconstruction(**shared), [tokens_BT])
    best, _ = plan_and_passes(mixtral, Exhaustive(**shared, max_subsets=1000), [tokens_BT])
    assert greedy.layers[0].facts["loss"] >= best.layers[0].facts["loss"] * (1 - 1e-9)


def test_what_goes_first_goes_first_at_lower_ratios(
    mixtral: Checkpoint, tokens_BT: Tensor, plan_and_passes: Callable[..., tuple[Plan, float]]
) -> None:
    """Down to what it keeps; with inputs through pruned layers each ratio is a search of its own."""
    plan, _ = plan_and_passes(mixtral, GREEDY, [tokens_BT])
    for num_kept in (3, 4, 5):
        lower = GREEDY.model_copy(update={"ratio": 1 - num_kept / 6})
        other, _ = plan_and_passes(mixtral, lower, [tokens_BT])
        for layer, found in zip(plan.layers, other.layers, strict=True):
            assert layer.ranking is not None
            assert layer.ranking.fewest == 3
            assert sorted(layer.ranking.experts[:num_kept]) == found.kept
    plan, _ = plan_and_passes(mixtral, GREEDY.model_copy(update={"progressive": True}), [tokens_BT])
    assert all(layer.ranking is None for layer in plan.layers)
