"""Which hidden units and heads go, and what stands in for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.coupled import cut_, sizes_of
from stun_exp.moe.observe import observe
from stun_exp.streaming.walk import Walk
from stun_exp.structured_pruner.neurons import Neurons
from stun_exp.structured_pruner.protocol import Cuts

CPU = torch.device("cpu")


def neurons(**settings: Any) -> Neurons:
    default: dict[str, Any] = {
        "ratio": 0.3,
        "score": "fluctuation",
        "budget": "global",
        "heads": True,
        "compensate": False,
        "official": False,
        "multiple_of": 1,
    }
    return Neurons(**default | settings)


def decided(source: Checkpoint, pruner: Neurons, tokens_BT: Tensor) -> Cuts:
    findings = []
    for step in Walk(source, [tokens_BT], CPU, "test"):
        statistics = pruner.statistics(step.layer)
        with observe(step.layer, statistics):
            step.forward()
        findings.append(pruner.examine(step.layer, statistics))
    return pruner.plan(findings)


def removed(source: Checkpoint, cuts: Cuts) -> int:
    """The weights that go."""
    gone = 0
    for cut in cuts.layers:
        sizes = sizes_of(source.outline(cut.layer))
        gone += (sizes.units - len(cut.units or range(sizes.units))) * sizes.unit_weights
        gone += (sizes.groups - len(cut.groups or range(sizes.groups))) * sizes.group_weights
    return gone


def total(source: Checkpoint) -> int:
    return sum(matrix.weight_OC.numel() for layer in source.outlines for matrix in layer.matrices())


@pytest.fixture
def llama(tiny_model: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint(tiny_model("llama"), None)


@pytest.mark.parametrize("score", ["fluctuation", "wanda", "magnitude"])
@pytest.mark.parametrize("heads", [True, False])
def test_the_share_that_goes_is_the_one_that_is_asked(
    llama: Checkpoint, tokens_BT: Tensor, score: Any, heads: bool
) -> None:
    """To within half of one part, a group of heads at most."""
    pruner = neurons(score=score, heads=heads)
    cuts = decided(llama, pruner, tokens_BT)
    sizes = sizes_of(llama.outline(0))
    largest = max(sizes.unit_weights, sizes.group_weights) if heads else sizes.unit_weights
    assert abs(removed(llama, cuts) - 0.3 * total(llama)) <= largest / 2
    assert all(cut.groups is None for cut in cuts.layers) != heads


def test_an_equal_budget_leaves_layers_equally_wide(llama: Checkpoint, tokens_BT: Tensor) -> None:
    cuts = decided(llama, neurons(budget="per_layer", ratio=0.4), tokens_BT)
    assert len({(len(cut.units or []), len(cut.groups or [])) for cut in cuts.layers}) == 1
    assert removed(llama, cuts) == pytest.approx(0.4 * total(llama), rel=0.05)


def test_scores_by_hand(llama: Checkpoint, tokens_BT: Tensor) -> None:
    """Of the second layer's hidden units those with the lowest Var(x) ||W||^2, mean |W| ||x|| or ||W|| go."""
    seen: list[Tensor] = []
    for step in Walk(llama, [tokens_BT], CPU, "test"):
        if step.layer.index == 1:
            down = step.layer.module.mlp.down_proj
            down.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
            step.forward()
            weight_OC = down.weight.detach()
            break
    x_NC = seen[0]
    wanted = {
        "fluctuation": x_NC.var(0, correction=0) * weight_OC.square().sum(0),
        "wanda": (weight_OC.abs() * x_NC.norm(dim=0)).mean(0),
        "magnitude": weight_OC.norm(dim=0),
    }
    for score, scores in wanted.items():
        cuts = decided(llama, neurons(score=score, budget="per_layer", heads=False), tokens_BT)
        kept = cuts.layers[1].units
        assert kept is not None
        assert kept == sorted(scores.topk(len(kept)).indices.tolist()), score


def test_a_bias_keeps_the_mean_output_of_what_went(llama: Checkpoint, tokens_BT: Tensor) -> None:
    """Over the tokens that it was measured on, the feed-forward gives the same in the mean; without, it does not."""
    pruner = neurons(compensate=True, budget="per_layer", heads=False, ratio=0.4)
    cuts = decided(llama, pruner, tokens_BT)
    assert not cuts.warnings
    means = {}
    for name, cut in (("whole", None), ("cut", cuts.layers[0]), ("bare", cuts.layers[0])):
        for step in Walk(llama, [tokens_BT], CPU, "test"):
            if cut is not None:
                cut_(step.layer, cut)
            down = step.layer.module.mlp.down_proj
            if name == "bare":
                down.bias = None
            outputs: list[Tensor] = []
            down.register_forward_hook(lambda module, args, output, to=outputs: to.append(output))
            step.forward()
            means[name] = outputs[0].flatten(0, 1).mean(0)
            break
    torch.testing.assert_close(means["cut"], means["whole"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(means["bare"], means["whole"], atol=1e-3)


def test_a_bias_that_nothing_can_hold_is_left_out_with_a_word(
    tiny_model: Callable[[str], Path], tokens_BT: Tensor
) -> None:
    cuts = decided(Checkpoint(tiny_model("mistral"), None), neurons(compensate=True), tokens_BT)
    assert [not cut.biases for cut in cuts.layers] == [True] * 3
    assert [warning.partition(":")[0] for warning in cuts.warnings] == ["structured_pruner.compensate=true"] * 2


def test_widths_are_multiples_where_that_is_asked(llama: Checkpoint, tokens_BT: Tensor) -> None:
    for budget in ("global", "per_layer"):
        cuts = decided(llama, neurons(multiple_of=4, budget=budget), tokens_BT)
        assert all(len(cut.units or []) % 4 == 0 for cut in cuts.layers)


@pytest.mark.parametrize(
    ("settings", "multiple", "says"),
    [
        ({"ratio": 0.95}, 1, "ratio=0.95: one hidden unit and one group of heads must stay"),
        ({"multiple_of": 6}, 4, "multiple_of=6: the unstructured_pruner's pattern wants rows of a multiple of 4"),
        (
            {"multiple_of": 32, "budget": "per_layer", "ratio": 0.01},
            1,
            "multiple_of=32: there are layers of 24 hidden units",
        ),
    ],
)
def test_what_cannot_be_is_refused(llama: Checkpoint, settings: dict[str, Any], multiple: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        neurons(**settings).check(llama.outlines, multiple)


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "olmo2", "phi3"])
def test_heads_that_cannot_go_by_themselves_are_refused(family: str, tiny_model: Callable[[str], Path]) -> None:
    outlines = Checkpoint(tiny_model(family), None).outlines
    with pytest.raises(ValueError, match=f"the heads of {family} cannot go by themselves"):
        neurons().check(outlines, 1)
    neurons(heads=False).check(outlines, 1)
