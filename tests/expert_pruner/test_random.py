"""Random experts: the same for the same seed, whatever else is in the model."""

from collections.abc import Callable
from typing import Any

import torch

from stun_exp.expert_pruner.random import RandomExperts
from stun_exp.moe.plan import LayerPlan, Plan


def kept(planned: Callable[..., Plan], source: Any, seed: int, layers: list[int]) -> dict[int, LayerPlan]:
    plan = planned(RandomExperts(ratio=0.5, seed=seed), [source(i, torch.ones(16, 2)) for i in layers])
    return {layer.layer: layer for layer in plan.layers}


def test_a_layer_does_not_depend_on_the_others(planned: Callable[..., Plan], source: Any) -> None:
    """One generator for all layers would choose anew in layer 3 as soon as a layer before it is dense."""
    assert kept(planned, source, 0, [1, 2, 3])[3] == kept(planned, source, 0, [3])[3]


def test_layers_and_seeds_differ(planned: Callable[..., Plan], source: Any) -> None:
    """(seed, layer) = (1, 2) and (2, 1) too: a sum of both would make them the same."""
    choices = [kept(planned, source, seed, [0, 1, 2])[layer].kept for seed in range(3) for layer in range(3)]
    assert len({tuple(choice) for choice in choices}) == 9


def test_every_expert_stays_about_as_often(planned: Callable[..., Plan], source: Any) -> None:
    """Half of 16 experts in 400 draws: 200 each, with a standard deviation of 10."""
    times = torch.zeros(16)
    for seed in range(400):
        times[kept(planned, source, seed, [0])[0].kept] += 1
    assert (times - 200).abs().max() < 50
