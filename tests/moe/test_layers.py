"""A decoder layer's matrices are all of its weights that may be pruned; regrouping is the only surgery."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, PreTrainedModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.moe.families import MoEFamily
from stun_exp.moe.layers import MoELayer, layers_of
from stun_exp.moe.plan import LayerPlan
from stun_exp.unstructured_pruner.protocol import Task
from stun_exp.unstructured_pruner.wanda import Wanda

Write = Callable[[Checkpoint, dict[int, list[list[int]]]], Checkpoint]
CPU = torch.device("cpu")
# What pruning never touches: routers, norms, biases and the gate of a shared expert.
EXEMPT = re.compile(r"mlp\.gate\.weight|mlp\.shared_expert_gate\.weight|.*norm\.weight|.*\.bias")


def moe_layer(checkpoint: Checkpoint) -> MoELayer:
    """The last layer: it has experts in every tiny model."""
    return checkpoint.read_layer(checkpoint.num_layers - 1)


def logits(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(tokens_BT).logits


def test_matrices_hold_every_weight_once_except_the_exempt(checkpoint: Checkpoint) -> None:
    """The guard against fused experts that are skipped in silence: each parameter element is counted."""
    for index in range(checkpoint.num_layers):
        layer = checkpoint.read_layer(index)
        for parameter in layer.module.parameters():
            parameter.zero_()
        for matrix in layer.matrices():
            matrix.weight_OC.add_(1)  # a view: what is written here is seen in the layer
        for name, parameter in layer.module.named_parameters():
            times = 0 if EXEMPT.fullmatch(name) else 1
            assert bool((parameter == times).all()), f"layer {index}, {name}"


def test_matrices_are_out_by_in_and_named_uniquely(checkpoint: Checkpoint) -> None:
    """Hidden size is 16 and expert width 24, so a transposed expert would show."""
    matrices = list(moe_layer(checkpoint).matrices())
    assert len({matrix.name for matrix in matrices}) == len(matrices)
    shapes = {m.name.rpartition(".")[2]: tuple(m.weight_OC.shape) for m in matrices if m.kind == "expert"}
    assert shapes == {"gate_proj": (24, 16), "up_proj": (24, 16), "down_proj": (16, 24)}


def test_gate_and_up_share_a_feed_and_down_has_its_own(mixtral: Checkpoint) -> None:
    feeds = {m.name: m.feed for m in moe_layer(mixtral).matrices() if ".experts.3." in m.name}
    assert feeds["mlp.experts.3.gate_proj"] == feeds["mlp.experts.3.up_proj"]
    assert feeds["mlp.experts.3.gate_proj"] != feeds["mlp.experts.3.down_proj"]


def test_the_gate_half_is_the_one_that_is_activated(checkpoint: Checkpoint) -> None:
    """Guards against swapped halves, which no shape would show: down(silu(gate x) * up x) is the expert."""
    layer = moe_layer(checkpoint)
    gate, up, down = (
        next(m.weight_OC for m in layer.matrices() if m.name == f"mlp.experts.4.{name}_proj")
        for name in ("gate", "up", "down")
    )
    x_D = torch.randn(16, generator=torch.Generator().manual_seed(0))
    by_hand = down @ (nn.functional.silu(gate @ x_D) * (up @ x_D))
    called = layer.experts(x_D[None], torch.tensor([[4]]), torch.ones(1, 1))
    torch.testing.assert_close(called[0], by_hand)


def test_parameters_per_expert_is_what_disappears_with_one(checkpoint: Checkpoint) -> None:
    layer = moe_layer(checkpoint)
    before = sum(parameter.numel() for parameter in layer.module.parameters())
    layer.regroup([[0], [1], [2], [4], [5]])
    after = sum(parameter.numel() for parameter in layer.module.parameters())
    # three matrices of 24 x 16 and a router row of 16
    assert before - after == layer.parameters_per_expert() == 3 * 24 * 16 + 16


def test_a_dense_layer_has_no_experts_and_nothing_to_remove(tiny_model: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(tiny_model("qwen2_moe"), None)
    dense = checkpoint.outline(0)
    assert (dense.is_moe, dense.num_experts, dense.parameters_per_expert()) == (False, 0, 0)
    assert {matrix.kind for matrix in dense.matrices()} == {"attention", "mlp"}


def weights(layer: MoELayer, experts: Sequence[int]) -> torch.Tensor:
    """The experts' flattened parameters, (len(experts), parameters of an expert)."""
    return torch.cat(list(layer.expert_weights(experts)), 1)


def test_pieces_of_large_experts_are_all_of_them(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = moe_layer(checkpoint)
    whole = weights(layer, [4, 1])
    monkeypatch.setattr("stun_exp.moe.layers.PIECE", 7)
    assert len(list(layer.expert_weights([4, 1]))) > 100
    assert torch.equal(weights(layer, [4, 1]), whole)
    assert whole.shape[1] == sum(tensor[0].numel() for tensor in layer.expert_tensors().values())


def test_a_group_of_one_is_bit_equal(checkpoint: Checkpoint) -> None:
    layer, source = moe_layer(checkpoint), moe_layer(checkpoint)
    layer.regroup([[5], [0], [3]])
    assert layer.num_experts == 3
    assert torch.equal(weights(layer, [0, 1, 2]), weights(source, [5, 0, 3]))
    assert torch.equal(layer.router_rows_ED(), source.router_rows_ED()[[5, 0, 3]])


def test_a_group_of_several_is_the_mean_of_weights_and_router_rows(checkpoint: Checkpoint) -> None:
    layer, source = moe_layer(checkpoint), moe_layer(checkpoint)
    layer.regroup([[1, 2, 4], [5]])
    torch.testing.assert_close(weights(layer, [0])[0], weights(source, [1, 2, 4]).mean(0))
    torch.testing.assert_close(layer.router_rows_ED()[0], source.router_rows_ED()[[1, 2, 4]].mean(0))


def test_weights_are_shares_of_weights_and_router_rows_alike(checkpoint: Checkpoint) -> None:
    """The merged router row must be weighted too; a group of one stays bit for bit whatever its share says."""
    layer, source = moe_layer(checkpoint), moe_layer(checkpoint)
    layer.regroup([[0, 3], [1], [2, 4, 5]], weights=[[0.75, 0.25], [1.0], [0.0, 0.5, 0.5]])
    before, after = weights(source, range(6)), weights(layer, range(3))
    torch.testing.assert_close(after[0], 0.75 * before[0] + 0.25 * before[3])
    torch.testing.assert_close(after[2], (before[4] + before[5]) / 2)
    assert torch.equal(after[1], before[1])
    rows, merged = source.router_rows_ED(), layer.router_rows_ED()
    torch.testing.assert_close(merged[0], 0.75 * rows[0] + 0.25 * rows[3])
    assert torch.equal(merged[1], rows[1])


def renumber_into(layer: MoELayer, original: int, copy: int) -> None:
    """Makes one expert a copy of another, with its 24 hidden units in another order."""
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    layer.experts.gate_up_proj[copy] = layer.experts.gate_up_proj[original][torch.cat([order, order + 24])]
    layer.experts.down_proj[copy] = layer.experts.down_proj[original][:, order]


@pytest.mark.parametrize("reference", [1, 4])
def test_aligned_members_take_the_order_of_the_expert_they_join(checkpoint: Checkpoint, reference: int) -> None:
    """The mean of an expert and its renumbered copy is the expert, in the reference's order and no other."""
    layer, source = moe_layer(checkpoint), moe_layer(checkpoint)
    for view in (layer, source):
        renumber_into(view, 1, 4)
    layer.regroup([[0], [1, 4], [5]], weights=[[1.0], [0.3, 0.7], [1.0]], align_to=[0, reference, 5])
    torch.testing.assert_close(weights(layer, [1]), weights(source, [reference]))
    assert not torch.allclose(weights(layer, [1]), weights(source, [5 - reference]))
    assert torch.equal(weights(layer, [0, 2]), weights(source, [0, 5]))
    rows = source.router_rows_ED()
    torch.testing.assert_close(layer.router_rows_ED()[1], 0.3 * rows[1] + 0.7 * rows[4])


@pytest.mark.parametrize("aligned", [True, False])
def test_apply_does_what_the_plan_says(mixtral: Checkpoint, aligned: bool) -> None:
    """Shares, and alignment to the kept expert, which need not be the first of its group."""
    layer, source = moe_layer(mixtral), moe_layer(mixtral)
    for view in (layer, source):
        renumber_into(view, 1, 4)
    layer.apply(LayerPlan(2, 6, [[0], [1, 4]], [0, 4], [[1.0], [0.25, 0.75]], aligned))
    plain = 0.25 * weights(source, [1]) + 0.75 * weights(source, [4])
    torch.testing.assert_close(weights(layer, [1]), weights(source, [4]) if aligned else plain)


def test_a_plan_that_keeps_everything_changes_nothing(mixtral: Checkpoint) -> None:
    layer, source = moe_layer(mixtral), moe_layer(mixtral)
    layer.apply(LayerPlan(2, 6, [[e] for e in range(6)], list(range(6)), [[1.0]] * 6, aligned=True))
    assert torch.equal(weights(layer, range(6)), weights(source, range(6)))


def test_fewer_groups_than_top_k_is_refused_by_name(mixtral: Checkpoint) -> None:
    layer = mixtral.read_layer(1)
    with pytest.raises(ValueError, match=r"layer 1: 1 of 6 experts would remain.*top_k=2"):
        layer.regroup([[0, 1, 2]])
    assert layer.num_experts == 6


def test_regroup_works_on_an_outline_without_weights(checkpoint: Checkpoint) -> None:
    outline = checkpoint.outline(checkpoint.num_layers - 1)
    outline.regroup([[0], [1, 2], [5]])
    assert outline.num_experts == 3
    assert outline.experts.gate_up_proj.is_meta
    assert outline.router.weight.shape == (3, 16)


def mask_router(router: nn.Module, kept: list[int], renormalize: bool) -> None:
    """Sends the logits of all other experts to minus infinity: softmax, top-k, renormalize as the model does."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        masked_TE = torch.full_like(output[0], -torch.inf)
        masked_TE[:, kept] = output[0][:, kept]
        weight_TK, index_TK = masked_TE.float().softmax(-1).topk(output[2].shape[-1], dim=-1)
        if renormalize:
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        return masked_TE, weight_TK, index_TK

    router.register_forward_hook(hook)


def test_pruned_equals_router_masked(checkpoint: Checkpoint, write_regrouped: Write, tokens_BT: Tensor) -> None:
    """Removing experts is the same as never choosing them; holds for top-k weights renormalized or not.

    Layers keep different experts, and different numbers of them; the dense layer of Qwen2-MoE stays as it is.
    """
    kept = {0: [0, 2, 3, 5], 1: [1, 2, 4], 2: [0, 1, 2, 5]}
    kept = {index: experts for index, experts in kept.items() if checkpoint.outline(index).is_moe}
    pruned = write_regrouped(checkpoint, {index: [[e] for e in experts] for index, experts in kept.items()})
    whole = load_checkpoint(checkpoint.path, CPU)
    assert not torch.allclose(logits(whole, tokens_BT), logits(load_checkpoint(pruned.path, CPU), tokens_BT), atol=1e-3)
    renormalize = getattr(checkpoint.config, "norm_topk_prob", True)  # Mixtral always does
    for index, experts in kept.items():
        layer = layers_of(whole, checkpoint.family)[index]
        mask_router(layer.router, experts, renormalize)
    torch.testing.assert_close(
        logits(load_checkpoint(pruned.path, CPU), tokens_BT), logits(whole, tokens_BT), rtol=1e-4, atol=1e-4
    )


def test_the_order_of_experts_does_not_matter(
    checkpoint: Checkpoint, write_regrouped: Write, tokens_BT: Tensor
) -> None:
    last = checkpoint.num_layers - 1
    permuted = write_regrouped(checkpoint, {last: [[3], [5], [0], [1], [4], [2]]})
    torch.testing.assert_close(
        logits(load_checkpoint(permuted.path, CPU), tokens_BT),
        logits(load_checkpoint(checkpoint.path, CPU), tokens_BT),
        rtol=1e-4,
        atol=1e-4,
    )


def test_permuting_experts_commutes_with_pruning_their_weights(checkpoint: Checkpoint) -> None:
    """A pruner that compared across experts, or read a neighbor's statistic, would not commute."""
    order = [3, 5, 0, 1, 4, 2]
    wanda = Wanda(
        attention=True, group="row", pattern="unstructured", inputs="pruned", min_tokens=1, starved="every_token"
    )

    def prune(layer: MoELayer, original: Callable[[int], int]) -> MoELayer:
        for matrix in layer.matrices():
            statistic = wanda.statistic(matrix.weight_OC.shape[1])
            if matrix.kind == "expert":
                expert = original(int(matrix.name.split(".")[2]))
                generator = torch.Generator().manual_seed(expert)
                statistic.update(torch.randn(9, matrix.weight_OC.shape[1], generator=generator))
            wanda.prune_([Task(matrix.name, matrix.weight_OC, statistic, 0.3)])
        return layer

    pruned_first, permuted_first = moe_layer(checkpoint), moe_layer(checkpoint)
    prune(pruned_first, lambda expert: expert).regroup([[expert] for expert in order])
    permuted_first.regroup([[expert] for expert in order])
    prune(permuted_first, lambda expert: order[expert])
    assert torch.equal(weights(pruned_first, range(6)), weights(permuted_first, range(6)))


@pytest.fixture
def group_limited() -> MoELayer:
    """A DeepSeek-V3 layer: 12 experts in 3 groups of 4, of which a token may choose 2, and 4 experts in those."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        hidden_size=16,
        moe_intermediate_size=8,
        n_routed_experts=12,
        num_local_experts=12,
        n_group=3,
        topk_group=2,
        num_experts_per_tok=4,
        n_shared_experts=1,
        first_k_dense_replace=0,
    )
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    module = DeepseekV3DecoderLayer(config, 0).requires_grad_(False).eval()
    for parameter in module.parameters():
        parameter.normal_(std=0.5)
    rows = ("weight", "e_score_correction_bias")
    return MoELayer(module, 0, MoEFamily(model_type="deepseek_v3", num_experts_key="", router_rows=rows))


def test_a_group_limited_router_keeps_its_groups(group_limited: MoELayer) -> None:
    """The third expert of each group is never chosen: without it, every token is served as before."""
    gone = [2, 6, 10]
    group_limited.router.e_score_correction_bias[gone] = -100.0
    hidden = torch.randn(1, 50, 16)
    before = group_limited.block(hidden)
    group_limited.regroup([[expert] for expert in range(12) if expert not in gone])
    assert (group_limited.num_experts, group_limited.num_groups) == (9, 3)
    torch.testing.assert_close(group_limited.block(hidden), before)


def test_groups_that_become_unequal_are_refused(group_limited: MoELayer) -> None:
    """The router splits its rows into equal groups: with 3, 4 and 4 it would crash, or mix neighbors."""
    with pytest.raises(ValueError, match=r"layer 0: .* 3 groups of 4 experts, and the plan leaves \[2, 4, 3\]"):
        group_limited.regroup([[expert] for expert in range(12) if expert not in (0, 1, 11)])


def test_a_group_limited_router_needs_two_experts_a_group(group_limited: MoELayer) -> None:
    """4 experts from 2 groups are 2 of each, and a group is ranked by its best two."""
    assert group_limited.min_experts == 6
    with pytest.raises(ValueError, match="layer 0: 3 of 12 experts would remain; the router needs 6"):
        group_limited.regroup([[0], [4], [8]])
