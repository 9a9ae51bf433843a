"""From units to layers: who is whose, what a pattern can take, and what is said about it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stun_exp.allocation.owl import OWL
from stun_exp.allocation.protocol import Allotment, Saliencies
from stun_exp.allocation.ratios import LayerRatios, Unit, ratios_of_layers
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.observe import observe
from stun_exp.moe.statistics import ExpertTokens
from stun_exp.pipeline.allocate import layer_ratios
from stun_exp.pipeline.budget import budget_of
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.wanda import Wanda

ROOT = Path(__file__).parent.parent.parent
CPU = torch.device("cpu")


def wanda(**settings: Any) -> Wanda:
    config = yaml.safe_load((ROOT / "conf/unstructured_pruner/wanda.yaml").read_text())
    return Wanda(**{key: value for key, value in config.items() if key != "_target_"} | settings)


def layers(ratios: list[float]) -> list[Unit]:
    return [Unit(layer, None, 10, 0.0) for layer in range(len(ratios))]


def test_units_find_their_layer() -> None:
    """Layer 1 is dense and has nothing to prune; layer 2 has experts of its own size and a rest."""
    units = [Unit(0, None, 10, 4.0), Unit(2, 0, 10, 1.0), Unit(2, 1, 10, 2.0), Unit(2, None, 20, 6.0)]
    found = ratios_of_layers(units, Allotment([0.1, 0.2, 0.3, 0.4]), 3, wanda(), pytest.fail)
    assert found == [
        LayerRatios(0.1, {}, 4.0),
        LayerRatios(0.0, {}, None),
        LayerRatios(0.4, {0: 0.2, 1: 0.3}, (10 * 1 + 10 * 2 + 20 * 6) / 40),
    ]


def test_a_limited_unit_is_named() -> None:
    said: list[str] = []
    units = [Unit(0, None, 10, 0.0), Unit(3, 5, 10, 0.0)]
    ratios_of_layers(units, Allotment([0.5, 1.0], {1: "1.2 is asked"}), 4, wanda(), said.append)
    assert said == ["layer 3, expert 5 (numbered after the expert stage): 1.2 is asked"]


def test_many_limited_units_are_counted_not_listed() -> None:
    """A model of thousands of experts would fill the screen."""
    said: list[str] = []
    ratios = [1.0] * 100
    ratios_of_layers(layers(ratios), Allotment(ratios, dict.fromkeys(range(100), "...")), 100, wanda(), said.append)
    assert said == [*(f"layer {layer}: ..." for layer in range(8)), "likewise in 92 more places"]


def test_a_pattern_takes_the_nearest_n_of_m_and_never_all() -> None:
    """Of 8: 0.42 is 3.4, 0.5 is 4, 0.58 is 4.6, 0.02 is 0.2; 0.97 is 7.8, and 8 of 8 would be whole rows of zeros."""
    said: list[str] = []
    ratios = [0.42, 0.5, 0.58, 0.02, 0.97]
    found = ratios_of_layers(layers(ratios), Allotment(ratios), 5, wanda(pattern="4:8"), said.append)
    assert [layer.rest for layer in found] == [3 / 8, 4 / 8, 5 / 8, 0.0, 7 / 8]
    assert said == ["layer 4: unstructured_pruner.pattern can take 7 of 8 neighbors, and the allocation asks for all"]


def test_a_spread_that_a_pattern_rounds_away_is_said() -> None:
    """OWL's default reaches from 0.42 to 0.58: of 4 neighbors that is 1.7 to 2.3, so 2 everywhere."""
    said: list[str] = []
    ratios = [0.42, 0.5, 0.58]
    found = ratios_of_layers(layers(ratios), Allotment(ratios), 3, wanda(pattern="2:4"), said.append)
    assert [layer.rest for layer in found] == [0.5] * 3
    assert len(said) == 1
    assert "the allocation has no effect: unstructured_pruner.pattern rounds all of its ratios to 2 of 4" in said[0]


def owl(**settings: Any) -> OWL:
    return OWL(
        **{"lamda": 0.08, "outlier_multiple": 3.0, "per": "expert", "pool": "reached", "center": "parameters"}
        | settings
    )


def allocate(
    source: Checkpoint, tokens_BT: Tensor, pruner: Wanda, allocation: Any, warn: Callable[[str], None]
) -> tuple[list[LayerRatios], float]:
    """The ratios of every layer at a mean of 0.5, and the mean over all weights that they make."""
    stage, budget = WeightStage(pruner, "decoder"), budget_of(source, {}, 0.5, "decoder", True)
    walk = Walk(source, [tokens_BT], CPU, "test")
    ratios = layer_ratios(stage, allocation, budget, 0.5, walk, warn)
    lost, size = 0.0, 0
    for index, layer in enumerate(ratios):
        for matrix in stage.matrices(source.read_layer(index)):
            lost += layer.of(matrix) * matrix.weight_OC.numel()
            size += matrix.weight_OC.numel()
    return ratios, lost / size


def test_every_expert_gets_its_own_ratio_and_the_total_stands(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    ratios, mean = allocate(checkpoint, tokens_BT, wanda(), owl(), pytest.fail)
    assert mean == pytest.approx(0.5, abs=1e-9)
    for index, layer in enumerate(ratios):
        assert sorted(layer.experts) == list(range(checkpoint.outline(index).num_experts))
    of_experts = [ratio for layer in ratios for ratio in layer.experts.values()]
    assert len(set(of_experts)) > 6
    every = [*of_experts, *(layer.rest for layer in ratios)]
    assert max(every) - min(every) == pytest.approx(0.16)


class Spy:
    """An allocation that keeps what it is shown of each layer."""

    measures, exact = True, True

    def __init__(self, per_expert: bool, pools_starved: bool = False) -> None:
        self.per_expert, self.pools_starved = per_expert, pools_starved
        self.seen: list[list[list[Tensor]]] = []

    def measure(self, saliencies: Saliencies) -> list[float]:
        self.seen.append([list(unit()) for unit in saliencies])
        return [0.0] * len(saliencies)

    def allocate(self, measured: list[float], sizes: list[int], ratio: float) -> Allotment:
        return Allotment([ratio] * len(sizes))


@pytest.mark.parametrize("per_expert", [True, False])
def test_saliencies_are_per_token_where_experts_are_compared(
    mixtral: Checkpoint, tokens_BT: Tensor, per_expert: bool
) -> None:
    """|W| times the root of the mean square of an expert's inputs, or, for whole layers as published, of their sum."""
    spy = Spy(per_expert)
    allocate(mixtral, tokens_BT, wanda(attention=False), spy, pytest.fail)
    layer = mixtral.read_layer(0)
    inputs: list[Tensor] = []
    layer.block.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(0, -2)))
    step = next(iter(Walk(mixtral, [tokens_BT], CPU, "test")))
    step.layer = layer
    step.forward()
    chosen_TK = layer.router(inputs[0])[2]
    x_ND = inputs[0][(chosen_TK == 0).any(dim=1)]
    square_D = x_ND.square().mean(0) if per_expert else x_ND.square().sum(0)
    gate_FD = layer.experts.gate_up_proj[0].chunk(2)[0]
    torch.testing.assert_close(spy.seen[0][0][0], gate_FD.detach().abs() * square_D.sqrt())


def test_starved_experts_are_left_out_or_count_as_nothing(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """What stands in for a starved expert's inputs is never shown: it is on another scale."""
    step, tokens = next(iter(Walk(mixtral, [tokens_BT], CPU, "test"))), ExpertTokens(6)
    with observe(step.layer, [tokens]):
        step.forward()
    enough = int(tokens.count_E.float().mean())
    starved = int((tokens.count_E < enough).sum())
    assert 0 < starved < 6
    shown = {}
    for pools_starved in (False, True):
        spy = Spy(per_expert=False, pools_starved=pools_starved)
        allocate(mixtral, tokens_BT, wanda(attention=False, min_tokens=enough), spy, pytest.fail)
        (shown[pools_starved],) = spy.seen[0]
    assert len(shown[False]) == 3 * (6 - starved)
    assert len(shown[True]) == 3 * 6
    assert sum(not saliency.any() for saliency in shown[True]) == 3 * starved
    assert all(saliency.any() for saliency in shown[False])


def test_owl_chooses_n_of_m_by_layer(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """The published variant for N:M: its lambda of 2 of 8 neighbors, here 0.125, spreads n by 2."""
    allocation = owl(per="layer", lamda=0.125)
    ratios, _ = allocate(mixtral, tokens_BT, wanda(pattern="4:8"), allocation, pytest.fail)
    taken = [layer.rest * 8 for layer in ratios]
    assert all(n in range(8) for n in taken)
    assert len(set(taken)) > 1


def test_experts_compared_with_all_of_the_layer_make_their_ratios_void(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    said: list[str] = []
    allocate(mixtral, tokens_BT, wanda(group="layer"), owl(), said.append)
    assert len(said) == 1
    assert "allocation.per=expert has no effect within a layer: unstructured_pruner.group=layer" in said[0]
