"""Which matrices are pruned by what flows into them, in which order, at what cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.inputs import InputStatistics
from stun_exp.moe.observe import observe
from stun_exp.pipeline.prune_layer import parts_of
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.masks import SquaredNorm
from stun_exp.unstructured_pruner.protocol import Task

CPU = torch.device("cpu")
Make = Callable[..., Any]
EXPERT_WEIGHTS = 3 * 16 * 24  # of one expert of a tiny model


def plain_norms(checkpoint: Checkpoint, tokens_BT: Tensor) -> list[dict[str, Tensor]]:
    """Norms of what flows into each matrix of each layer of the model as it is."""
    found = []
    for step in Walk(checkpoint, list(tokens_BT.split(3)), CPU, "test"):
        matrices = list(step.layer.matrices())
        inputs = InputStatistics(step.layer, matrices, SquaredNorm)
        with observe(step.layer, [inputs]):
            step.forward()
        found.append({matrix.name: inputs.by_feed[matrix.feed].norm_C() for matrix in matrices})
    return found


def norms(layer: dict[str, Task]) -> dict[str, Tensor]:
    found = {}
    for name, task in layer.items():
        assert isinstance(task.statistic, SquaredNorm)
        found[name] = task.statistic.norm_C()
    return found


def same_bytes(one: Checkpoint, other: Checkpoint) -> bool:
    files = sorted(one.path.glob("*.safetensors"))
    return bool(files) and all(file.read_bytes() == (other.path / file.name).read_bytes() for file in files)


@pytest.mark.parametrize("experts_at_once", [None, 2])
def test_dense_inputs_are_those_of_the_model_as_it_was(
    checkpoint: Checkpoint, tokens_BT: Tensor, prune: Make, recorder: Make, experts_at_once: int | None
) -> None:
    """At any ratio, in every layer: a layer's later portions run behind pruned experts, which must not leak out."""
    plain = plain_norms(checkpoint, tokens_BT)
    for ratio in (0.3, 0.8):
        pruner = recorder(inputs="dense", experts_at_once=experts_at_once, min_tokens=0)
        prune(checkpoint, pruner, ratio)
        for found, expected in zip(map(norms, pruner.layers), plain, strict=True):
            assert found.keys() == expected.keys()
            # What lies elsewhere in memory may take other kernels; a leak would be far more than their last digits.
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_pruned_inputs_are_not(mixtral: Checkpoint, tokens_BT: Tensor, prune: Make, recorder: Make) -> None:
    """The first layer sees the same text; those behind it what it has become."""
    plain, pruner = plain_norms(mixtral, tokens_BT), recorder()
    prune(mixtral, pruner)
    first, second, _ = map(norms, pruner.layers)
    torch.testing.assert_close(first, plain[0], rtol=1e-5, atol=1e-5)
    assert not any(torch.allclose(norm, plain[1][name], rtol=1e-3) for name, norm in second.items())


def test_a_layer_is_pruned_on_the_outputs_of_its_pruned_predecessors(
    mixtral: Checkpoint, tokens_BT: Tensor, prune: Make, component: Make
) -> None:
    """Layer 1, pruned again by hand on inputs that come through the written layer 0."""
    wanda = component("wanda")
    written = prune(mixtral, wanda).written
    inputs_BTD = [step.hidden_BTD for step in Walk(written, list(tokens_BT.split(3)), CPU, "test")][1]
    layer = mixtral.read_layer(1)
    norm = wanda.statistic(16)
    for hidden_BTD in inputs_BTD:
        norm.update(layer.module.input_layernorm(hidden_BTD).flatten(0, 1))
    by_hand = layer.module.self_attn.q_proj.weight.clone()
    wanda.prune_([Task("q", by_hand, norm, 0.5)])
    assert torch.equal(written.read_layer(1).module.self_attn.q_proj.weight, by_hand)


@pytest.mark.parametrize("name", ["wanda", "moe_pruner", "magnitude"])
def test_on_dense_inputs_masks_are_nested_as_sparsity_rises(
    checkpoint: Checkpoint, prune: Make, component: Make, name: str
) -> None:
    """So one calibration serves every sparsity."""
    settings = {} if name == "magnitude" else {"inputs": "dense"}
    masks = []
    for ratio in (0.3, 0.7):
        pruned = prune(checkpoint, component(name, **settings), ratio)
        masks.append([after == 0 for index in range(3) for _, after in pruned.matrices(index).values()])
    assert all(not bool((few & ~more).any()) for few, more in zip(*masks, strict=True))


def test_on_pruned_inputs_they_are_not(mixtral: Checkpoint, prune: Make, component: Make) -> None:
    """The reason for dense ones, and a check that nested masks are not had for nothing."""
    few, more = (prune(mixtral, component("wanda"), ratio).matrices(2) for ratio in (0.3, 0.7))
    assert any(bool(((few[name][1] == 0) & (more[name][1] != 0)).any()) for name in few)


@pytest.mark.parametrize(("inputs", "experts_at_once"), [("dense", 2), ("pruned", 4)])
def test_experts_in_portions_give_the_same_bytes(
    checkpoint: Checkpoint, prune: Make, recorder: Make, inputs: str, experts_at_once: int
) -> None:
    """Portions that divide 6 experts or not; a pruned expert changes nothing that its neighbors receive."""
    whole = prune(checkpoint, recorder(inputs=inputs)).written
    pruner = recorder(inputs=inputs, experts_at_once=experts_at_once)
    assert same_bytes(prune(checkpoint, pruner).written, whole)
    for call in pruner.calls:
        experts = {name.split(".")[2] for name in call if ".experts." in name}
        assert len(experts) <= experts_at_once
        assert not experts or not any("self_attn" in name for name in call)
    assert "self_attn.o_proj" in pruner.calls[-1]  # attention feeds the experts, so it is pruned after them


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"inputs": "dense"}, 1),
        ({"inputs": "pruned"}, 1 + 2 / 3),  # each layer but the last once more, for what feeds the next
        ({"inputs": "dense", "experts_at_once": 2}, 4),  # three portions of experts, and attention
        ({"inputs": "pruned", "experts_at_once": 2}, 4 + 2 / 3),
        ({"inputs": "dense", "experts_at_once": 4}, 3),
    ],
)
def test_forward_passes_are_counted(
    mixtral: Checkpoint, prune: Make, recorder: Make, settings: dict[str, Any], passes: float
) -> None:
    assert prune(mixtral, recorder(**settings)).passes == pytest.approx(passes)


def test_magnitude_runs_nothing_and_counts_no_tokens(mixtral: Checkpoint, prune: Make, component: Make) -> None:
    pruned = prune(mixtral, component("magnitude"))
    assert pruned.passes == 0
    assert [layer.tokens for layer in pruned.layers] == [[], [], []]
    assert [layer.starved for layer in pruned.layers] == [[], [], []]


def test_tokens_of_each_expert_are_reported(tiny_model: Make, tokens_BT: Tensor, prune: Make, component: Make) -> None:
    """Two experts a token in every layer that has experts; the dense first layer of this family has none."""
    layers = prune(Checkpoint(tiny_model("qwen2_moe"), None), component("wanda")).layers
    assert [len(layer.tokens) for layer in layers] == [0, 6, 6]
    assert [sum(layer.tokens) for layer in layers] == [0, 2 * tokens_BT.numel(), 2 * tokens_BT.numel()]


def test_a_layer_of_which_nothing_is_asked_stays_as_it_is(
    mixtral: Checkpoint, tokens_BT: Tensor, prune: Make, recorder: Make
) -> None:
    """And costs no pass but the one that feeds the next."""
    pruner = recorder()
    pruned = prune(mixtral, pruner, [LayerRatios(0.5), LayerRatios(0.0), LayerRatios(0.5)])
    assert all(torch.equal(before, after) for before, after in pruned.matrices(1).values())
    assert [pruned.zeros(index) for index in range(3)] == [pruned.size(0) // 2, 0, pruned.size(2) // 2]
    assert [layer.ratio for layer in pruned.layers] == [0.5, 0.0, 0.5]
    assert pruner.layers[1] == {}
    assert pruned.passes == pytest.approx(4 / 3)  # two, one, and one for the last


def test_experts_may_have_ratios_of_their_own(mixtral: Checkpoint, prune: Make, component: Make) -> None:
    """A quarter of expert 0, none of 1, half of the others, and all but a tenth of attention."""
    ratios = LayerRatios(0.9, {0: 0.25, 1: 0.0} | dict.fromkeys(range(2, 6), 0.5))
    pruned = prune(mixtral, component("wanda"), [ratios] * 3)
    for index in range(3):
        zeros = [pruned.zeros(index, expert) for expert in range(6)]
        assert zeros == [EXPERT_WEIGHTS // 4, 0, *[EXPERT_WEIGHTS // 2] * 4]
        rest = pruned.size(index) - 6 * EXPERT_WEIGHTS
        assert pruned.zeros(index) - sum(zeros) == pytest.approx(0.9 * rest, abs=2)
        assert pruned.layers[index].ratio == pytest.approx(pruned.zeros(index) / pruned.size(index), abs=1e-3)


@pytest.mark.parametrize("name", ["wanda", "moe_pruner", "magnitude"])
@pytest.mark.parametrize("group", ["layer", "cumulative", "matrix", "row"])
def test_every_group_takes_what_is_asked_of_each_layer(
    mixtral: Checkpoint, prune: Make, component: Make, name: str, group: str
) -> None:
    pruned = prune(mixtral, component(name, group=group), 0.37)
    for index in range(3):
        assert pruned.zeros(index) == pytest.approx(0.37 * pruned.size(index), abs=len(pruned.matrices(index)))


@pytest.mark.parametrize("name", ["wanda", "moe_pruner", "magnitude"])
@pytest.mark.parametrize(("pattern", "n", "m"), [("2:4", 2, 4), ("3:8", 3, 8)])
def test_a_pattern_holds_in_every_matrix(
    checkpoint: Checkpoint, prune: Make, component: Make, name: str, pattern: str, n: int, m: int
) -> None:
    """Fused, transposed or plain: the m neighbors are inputs of one output."""
    pruned = prune(checkpoint, component(name, pattern=pattern, group="row"), n / m)
    for index in range(3):
        for matrix, (_, after) in pruned.matrices(index).items():
            assert (after == 0).reshape(len(after), -1, m).sum(2).unique().tolist() == [n], matrix


def test_a_pattern_that_does_not_fit_names_the_matrix(mixtral: Checkpoint, prune: Make, component: Make) -> None:
    """Hidden size 16, expert width 24."""
    with pytest.raises(ValueError, match=r"16 neighbors do not divide the 24 inputs of mlp.experts.0.down_proj"):
        prune(mixtral, component("wanda", pattern="4:16"), 0.25)


def test_a_router_that_chooses_one_makes_moe_pruner_wanda(
    mixtral_copy: Path, prune: Make, component: Make, mixtral: Checkpoint
) -> None:
    """Mixtral's gates sum to 1, so with one expert a token every gate is 1; with two they differ, and so do masks."""
    config = (mixtral_copy / "config.json").read_text()
    (mixtral_copy / "config.json").write_text(config.replace('"num_experts_per_tok": 2', '"num_experts_per_tok": 1'))
    top_1 = Checkpoint(mixtral_copy, None)
    assert top_1.config.num_experts_per_tok == 1
    for source, same in ((top_1, True), (mixtral, False)):
        ours, wanda = (prune(source, component(name)).written for name in ("moe_pruner", "wanda"))
        assert same_bytes(ours, wanda) is same


def test_moe_pruner_prunes_what_is_no_routed_experts_as_wanda(
    checkpoint: Checkpoint, prune: Make, component: Make
) -> None:
    """There is no gate outside of routed experts; the shared expert sees every token."""
    ours, wanda = (prune(checkpoint, component(name, inputs="dense")) for name in ("moe_pruner", "wanda"))
    for index in range(3):
        after, expected = ours.matrices(index), wanda.matrices(index)
        rest = [name for name in after if ".experts." not in name]
        assert "self_attn.q_proj" in rest
        assert all(torch.equal(after[name][1], expected[name][1]) for name in rest)
        experts = [name for name in after if ".experts." in name]
        assert not experts or any(not torch.equal(after[name][1], expected[name][1]) for name in experts)


def test_parts_leave_nothing_out(checkpoint: Checkpoint, recorder: Make) -> None:
    for experts_at_once in (None, 1, 4, 100):
        stage = WeightStage(recorder(experts_at_once=experts_at_once), "decoder")
        for index in range(3):
            matrices = stage.matrices(checkpoint.read_layer(index))
            parts = parts_of(stage.pruner, matrices)
            assert sorted(m.name for part in parts for m in part) == sorted(m.name for m in matrices)


def damaged(folder: Path, key: str, value: float) -> Checkpoint:
    tensors = load_file(folder / "model.safetensors")
    tensors[key].view(-1)[7] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Checkpoint(folder, None)


@pytest.mark.parametrize("name", ["wanda", "moe_pruner", "magnitude"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_damaged_weight_is_named(mixtral_copy: Path, prune: Make, component: Make, name: str, value: float) -> None:
    source = damaged(mixtral_copy, "model.layers.1.block_sparse_moe.experts.3.w2.weight", value)
    with pytest.raises(ValueError, match=r"^layer 1: mlp.experts.3.down_proj holds NaN or infinity"):
        prune(source, component(name))


def test_damage_outside_of_what_is_pruned_is_named_where_it_flows_in(
    mixtral_copy: Path, prune: Make, component: Make
) -> None:
    """A NaN in attention that is left alone reaches the experts: every comparison with one is false."""
    source = damaged(mixtral_copy, "model.layers.1.self_attn.v_proj.weight", torch.nan)
    with pytest.raises(ValueError, match=r"^layer 1: NaN or infinity flows into mlp.experts.\d.in .*model.dtype"):
        prune(source, component("wanda", attention=False))


def test_inputs_whose_squares_overflow_are_named(mixtral_copy: Path, prune: Make, component: Make) -> None:
    """Finite inputs of 1e25: their norm would be infinite, and every saliency of the column with it."""
    source = damaged(mixtral_copy, "model.layers.2.input_layernorm.weight", 1e25)
    with pytest.raises(ValueError, match=r"^layer 2: NaN or infinity flows into "):
        prune(source, component("wanda"))
