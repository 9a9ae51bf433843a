"""What LLM-Surgeon takes of a dense model, and what the rest becomes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.moe.coupled import LayerCut, Lines, Sizes, cut_, sizes_of
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.observe import Statistic, observe
from stun_exp.streaming.backward import BackwardWalk
from stun_exp.streaming.walk import Walk
from stun_exp.structured_pruner.cheapest import LineCosts, PartCosts, cheapest_lines, cheapest_parts
from stun_exp.structured_pruner.llm_surgeon import LlmSurgeon
from stun_exp.structured_pruner.protocol import Cuts

CPU = torch.device("cpu")


def surgeon(**settings: Any) -> LlmSurgeon:
    default: dict[str, Any] = {"ratio": 0.2, "shots": 1, "damping": 0.01, "heads": True, "shrink": True}
    return LlmSurgeon(**default | settings)


def decided(source: Checkpoint, pruner: LlmSurgeon, tokens_BT: Tensor) -> tuple[Cuts, list[list[Statistic]]]:
    findings, seen = [], []
    for step in BackwardWalk(Walk(source, [tokens_BT], CPU, "test")):
        statistics = pruner.statistics(step.layer)
        with observe(step.layer, statistics):
            step.backward()
        findings.append(pruner.examine(step.layer, statistics))
        seen.append(statistics)
    return pruner.plan(findings[::-1]), seen[::-1]


def pruned(source: Checkpoint, pruner: LlmSurgeon, tokens_BT: Tensor) -> list[MoELayer]:
    cuts, seen = decided(source, pruner, tokens_BT)
    layers = []
    for cut, statistics in zip(cuts.layers, seen, strict=True):
        layers.append(source.read_layer(cut.layer))
        pruner.adjust_(layers[-1], cut, statistics)
        cut_(layers[-1], cut)
    return layers


@pytest.fixture
def llama(tiny_model: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint(tiny_model("llama"), None)


def edited(source: Checkpoint, out: Path, edit: Callable[[Any], None]) -> Checkpoint:
    """A copy whose second layer is changed."""
    model = load_checkpoint(source.path, CPU)
    with torch.no_grad():
        edit(model.model.layers[1])
    model.save_pretrained(out)
    return Checkpoint(out, None)


def test_the_share_that_goes_is_the_one_that_is_asked(llama: Checkpoint, tokens_BT: Tensor) -> None:
    """To within half of one part, a group of heads at most."""
    sizes = sizes_of(llama.outline(0))
    total = sum(matrix.weight_OC.numel() for layer in llama.outlines for matrix in layer.matrices())
    for heads in (True, False):
        layers = pruned(llama, surgeon(heads=heads), tokens_BT)
        left = sum(matrix.weight_OC.numel() for layer in layers for matrix in layer.matrices())
        assert abs(total - left - 0.2 * total) <= (sizes.group_weights if heads else sizes.unit_weights) / 2
        assert heads or all(sizes_of(layer).groups == sizes.groups for layer in layers)


def test_permuted_hidden_units_are_pruned_the_same(llama: Checkpoint, tokens_BT: Tensor, tmp_path: Path) -> None:
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))

    def permute(layer: Any) -> None:
        for name in ("gate_proj", "up_proj"):
            weight = getattr(layer.mlp, name).weight
            weight.copy_(weight[order].clone())
        layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order].clone())

    permuted = edited(llama, tmp_path / "permuted", permute)
    plain, other = (decided(source, surgeon(heads=False), tokens_BT)[0].layers for source in (llama, permuted))
    assert plain[1].units is not None
    assert other[1].units is not None
    assert len(plain[1].units) < 24
    assert sorted(order[list(other[1].units)].tolist()) == plain[1].units
    assert (plain[0].units, plain[2].units) == (other[0].units, other[2].units)
    x_BTD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    one, two = (pruned(source, surgeon(heads=False), tokens_BT)[1] for source in (llama, permuted))
    torch.testing.assert_close(one.block(x_BTD), two.block(x_BTD), rtol=1e-4, atol=1e-4)


def test_of_two_equal_units_one_goes_first_and_the_other_does_the_work_of_both(
    llama: Checkpoint, tokens_BT: Tensor, tmp_path: Path
) -> None:
    """Nothing is lost. Were the rows that feed the unit made up for as well, the other would do more than both."""

    def duplicate(layer: Any) -> None:
        for name in ("gate_proj", "up_proj"):
            getattr(layer.mlp, name).weight[7] = getattr(layer.mlp, name).weight[3]

    source = edited(llama, tmp_path / "twins", duplicate)
    total = sum(matrix.weight_OC.numel() for layer in source.outlines for matrix in layer.matrices())
    pruner = surgeon(ratio=sizes_of(source.outline(1)).unit_weights / total, heads=False, damping=1e-6)
    cuts, _ = decided(source, pruner, tokens_BT)
    assert [len(cut.units or []) for cut in cuts.layers] == [24, 23, 24]
    assert cuts.layers[1].units is not None
    assert len({3, 7} & set(cuts.layers[1].units)) == 1
    layer = pruned(source, pruner, tokens_BT)[1]
    x_BTD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer.block(x_BTD), source.read_layer(1).block(x_BTD), rtol=1e-3, atol=1e-3)


def test_what_is_pruned_with_the_update_loses_less(llama: Checkpoint, tokens_BT: Tensor) -> None:
    """Of the feed-forward's outputs, on the text that the curvature was measured on; the inputs are the same."""
    pruner = surgeon(heads=False, ratio=0.3)
    cuts, seen = decided(llama, pruner, tokens_BT)
    for step in Walk(llama, [tokens_BT], CPU, "test"):
        whole, cut = step.layer, cuts.layers[step.layer.index]
        inputs: list[Tensor] = []
        hook = whole.block.register_forward_pre_hook(lambda module, args, to=inputs: to.append(args[0]))
        step.forward()
        hook.remove()
        errors = []
        for adjusts in (True, False):
            layer = llama.read_layer(cut.layer)
            if adjusts:
                pruner.adjust_(layer, cut, seen[cut.layer])
            cut_(layer, cut)
            errors.append(float((layer.block(inputs[0]) - whole.block(inputs[0])).square().sum()))
        assert errors[0] < errors[1]


@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
def test_without_shrinking_shapes_stay_and_zeros_are_the_share(
    tiny_model: Callable[[str], Path], tokens_BT: Tensor, family: str
) -> None:
    """Biases too, and halves that are fused in one matrix."""
    source = Checkpoint(tiny_model(family), None)
    layers = pruned(source, surgeon(shrink=False, heads=family == "llama"), tokens_BT)
    zeros = total = 0
    for layer in layers:
        for matrix, whole in zip(layer.matrices(), source.outline(layer.index).matrices(), strict=True):
            assert matrix.weight_OC.shape == whole.weight_OC.shape
            gone_OC = ~matrix.weight_OC.any(1)[:, None] | ~matrix.weight_OC.any(0)
            assert torch.equal(gone_OC, matrix.weight_OC == 0), "rows and columns alone"
            zeros, total = zeros + int(gone_OC.sum()), total + gone_OC.numel()
    assert zeros / total == pytest.approx(0.2, abs=0.01)


def part(layer: int, units: Sequence[float], groups: Sequence[float] | None = None) -> PartCosts:
    sizes = Sizes(len(units), 10, len(groups or ()), 40)
    return PartCosts(layer, sizes, 200, torch.tensor(units), None if groups is None else torch.tensor(groups))


def test_parts_are_ranked_by_the_cost_of_each_weight() -> None:
    """A group weighs as much as four units: at 40 it goes after a unit at 9, and before one at 11."""
    findings = [part(0, [9.0, 50.0, 60.0]), part(1, [11.0, 50.0, 60.0], [40.0, 90.0])]
    assert cheapest_parts(findings, 10, fills=True)[0] == [{"units": [0], "groups": []}, {"units": [], "groups": []}]
    both = [{"units": [0], "groups": []}, {"units": [], "groups": [0]}]
    chosen, threshold = cheapest_parts(findings, 50, fills=True)
    assert (chosen, threshold) == (both, 1.0)


def test_what_is_too_large_is_passed_over_at_the_last_shot_alone() -> None:
    """20 are wanted: the group, of 40, is the next after one unit. Before the last shot it waits for its turn."""
    findings = [part(0, [9.0, 50.0, 60.0]), part(1, [11.0, 50.0, 60.0], [38.0, 90.0])]
    last, _ = cheapest_parts(findings, 20, fills=True)
    assert last == [{"units": [0], "groups": []}, {"units": [0], "groups": []}]
    earlier, _ = cheapest_parts(findings, 20, fills=False)
    assert earlier == [{"units": [0], "groups": []}, {"units": [], "groups": []}]


def test_one_part_of_a_kind_stays_in_a_layer() -> None:
    chosen, _ = cheapest_parts([part(0, [1.0, 2.0], [1.0, 2.0]), part(1, [90.0, 91.0])], 1000, fills=True)
    assert chosen == [{"units": [0], "groups": [0]}, {"units": [0], "groups": []}]


def test_a_line_counts_by_what_the_others_have_left_of_it() -> None:
    """Of 3 x 4: a row has 4 weights, and then a column 2 that are left: R rows + C columns - RC."""
    rows, columns = torch.tensor([1.0, 8.0, 9.0]), torch.tensor([7.0, 2.0, 9.0, 9.0])
    finding = LineCosts(0, 12, {"a": rows}, {"a": columns})
    lines, threshold, taken = cheapest_lines([finding], 6)
    assert (lines, threshold, taken) == ([{"a": Lines([0], [1])}], 2.0, 6)
    assert cheapest_lines([finding], 4)[0] == [{"a": Lines([0], [])}]


def test_lines_that_are_zero_already_count_as_gone() -> None:
    """A zero row of 4 and a zero column of 2: 6 of 8 wanted are there, and one more column is to go."""
    rows, columns = torch.tensor([torch.nan, 8.0, 9.0]), torch.tensor([7.0, torch.nan, 9.0, 9.0])
    lines, _, taken = cheapest_lines([LineCosts(0, 12, {"a": rows}, {"a": columns})], 8)
    assert (lines, taken) == ([{"a": Lines([], [0])}], 8)


def test_shots_take_equal_shares_of_the_whole() -> None:
    """After 10 % of 30 % in three shots, the second is to take 10 % of the whole, 1/9 of what is left."""
    second = surgeon(ratio=0.3, shots=3).after(1, 0.1)
    assert isinstance(second, LlmSurgeon)
    assert second.ratio == pytest.approx(0.1 / 0.9)
    assert second.shots == 2


def test_a_cut_of_zeros_leaves_shapes(llama: Checkpoint) -> None:
    layer = llama.read_layer(0)
    cut_(layer, LayerCut(0, zeros={"mlp.down_proj": Lines([1], [2])}))
    weight_OC = layer.module.mlp.down_proj.weight
    assert weight_OC.shape == (16, 24)
    assert (weight_OC == 0).sum() == 16 + 24 - 1


@pytest.mark.parametrize(
    ("settings", "multiple", "says"),
    [
        ({"ratio": 0.97}, 1, "ratio=0.97: one hidden unit and one group of heads must stay"),
        ({"ratio": 0.9, "heads": False}, 1, "ratio=0.9: one hidden unit must stay in each layer"),
        ({}, 4, "rows of a multiple of 4; pass structured_pruner.shrink=false"),
    ],
)
def test_what_cannot_be_is_refused(llama: Checkpoint, settings: dict[str, Any], multiple: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        surgeon(**settings).check(llama.outlines, multiple)


def test_zeros_alone_may_have_a_pattern(llama: Checkpoint) -> None:
    surgeon(shrink=False).check(llama.outlines, 4)


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "olmo2", "phi3"])
def test_heads_that_cannot_go_by_themselves_are_refused(family: str, tiny_model: Callable[[str], Path]) -> None:
    outlines = Checkpoint(tiny_model(family), None).outlines
    with pytest.raises(ValueError, match=f"the heads of {family} cannot go by themselves"):
        surgeon().check(outlines, 1)
    surgeon(heads=False).check(outlines, 1)
