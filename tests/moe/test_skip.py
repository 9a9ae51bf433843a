"""Skipped experts are really not run, and what is left is what the rule says, token by token."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.moe.layers import MoELayer, layers_of
from stun_exp.moe.skip import GateRatios, kept_TK, skip_experts, tail_to_head_TI

CPU = torch.device("cpu")
IMPLEMENTATIONS = ["eager", "grouped_mm", "batched_mm"]


def num_kept(gates: list[float], beta: float) -> int:
    """The rule as it is written: the smallest i whose tail is below beta times its head, all if there is none."""
    ranked = sorted(gates, reverse=True)
    return next((i for i in range(1, len(ranked)) if sum(ranked[i:]) < beta * sum(ranked[:i])), len(ranked))


def last_layer(model: PreTrainedModel, checkpoint: Checkpoint) -> MoELayer:
    """The last layer, which has experts in every tiny model."""
    index = checkpoint.num_layers - 1
    return layers_of(model, checkpoint.family)[index]


def betas(checkpoint: Checkpoint, beta: float) -> dict[int, float]:
    return {index: beta for index in range(checkpoint.num_layers) if checkpoint.outline(index).is_moe}


def logits(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(tokens_BT).logits
    return found


def test_ratios_by_hand() -> None:
    """The order of the gates and their scale count for nothing."""
    gates_TK = torch.tensor([[0.3, 0.5, 0.2], [0.25, 0.25, 0.5]])
    expected_TI = torch.tensor([[1.0, 0.25], [1.0, 1 / 3]])
    torch.testing.assert_close(tail_to_head_TI(gates_TK), expected_TI)
    torch.testing.assert_close(tail_to_head_TI(3 * gates_TK), expected_TI)
    # Not as the whole less the head, which would be off by a tenth here.
    assert tail_to_head_TI(torch.tensor([[1.0, 1e-6]])).item() == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("beta", "kept"),
    [
        (0.0, [True, True, True]),
        (0.25, [True, True, True]),  # a gate at the threshold itself stays
        (0.26, [True, True, False]),
        (1.0, [True, True, False]),
        (1.1, [False, True, False]),
        (1e9, [False, True, False]),
    ],
)
def test_what_is_kept_by_hand(beta: float, kept: list[bool]) -> None:
    """Gates 3 : 5 : 2, so tails over heads are 5/5 and 2/8; the largest gate is in the middle."""
    assert kept_TK(torch.tensor([[3.0, 5.0, 2.0]]), beta).tolist() == [kept]


@pytest.mark.parametrize("top_k", [2, 3, 5])
def test_kept_is_the_rule_token_by_token(top_k: int) -> None:
    gates_TK = torch.rand(200, top_k, generator=torch.Generator().manual_seed(top_k))
    for beta in (0.1, 0.5, 2.0):
        for gates, kept in zip(gates_TK.tolist(), kept_TK(gates_TK, beta).tolist(), strict=True):
            left = [gate for gate, stays in zip(gates, kept, strict=True) if stays]
            assert left
            assert sorted(left) == sorted(gates)[-num_kept(gates, beta) :]


def test_the_share_skipped_counts_every_expert_that_goes() -> None:
    """Of 3 + 3 gates 0 + 2 go at beta 0.9, over two batches: ratios (1, 1/4) of one token, (1/2, 1/8) of the other."""
    statistic = GateRatios()
    for gates in ([0.5, 0.3, 0.2], [6.0, 2.0, 1.0]):
        statistic.routing(torch.empty(0), torch.empty(0), torch.tensor([gates]))
    assert statistic.skipped(0.2) == pytest.approx(1 / 6)
    assert statistic.skipped(0.9) == pytest.approx(3 / 6)
    assert statistic.skipped(9.0) == pytest.approx(4 / 6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("renormalizes", [True, False])
def test_experts_equal_a_loop_over_tokens(checkpoint: Checkpoint, implementation: str, renormalizes: bool) -> None:
    """With four experts a token, gates in any order, and whichever of transformers' own functions runs them."""
    model = load_checkpoint(checkpoint.path, CPU)
    model.config._experts_implementation = implementation
    layer = last_layer(model, checkpoint)
    layer.router.norm_topk_prob = renormalizes
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(40, 16, generator=generator)
    index_TK = torch.stack([torch.randperm(6, generator=generator)[:4] for _ in x_TD])
    weight_TK = torch.rand(40, 4, generator=generator)

    with torch.inference_mode(), skip_experts(model, checkpoint.family, {layer.index: 0.6}) as skips:
        found_TD = layer.experts(x_TD, index_TK, weight_TK)

    matrices = {matrix.name: matrix.weight_OC for matrix in layer.matrices()}
    expected_TD = torch.zeros_like(x_TD)
    skipped = 0
    for token, x_D in enumerate(x_TD):
        gates = weight_TK[token].tolist()
        left = sorted(range(4), key=lambda slot: -gates[slot])[: num_kept(gates, 0.6)]
        skipped += 4 - len(left)
        scale = sum(gates) / sum(gates[slot] for slot in left) if renormalizes else 1.0
        for slot in left:
            names = (f"mlp.experts.{index_TK[token, slot]}.{name}_proj" for name in ("gate", "up", "down"))
            gate, up, down = (matrices[name] for name in names)
            expected_TD[token] += scale * gates[slot] * (down @ (nn.functional.silu(gate @ x_D) * (up @ x_D)))
    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-4, atol=1e-5)
    assert 0 < skipped < 3 * 40
    assert skips[layer.index].so_far().share() == pytest.approx(skipped / 160)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_a_skipped_expert_is_not_run(mixtral: Checkpoint, implementation: str) -> None:
    """An expert of nothing but NaN spoils whatever it is run on, even with a weight of zero."""
    model = load_checkpoint(mixtral.path, CPU)
    model.config._experts_implementation = implementation
    experts = last_layer(model, mixtral).experts
    experts.gate_up_proj.data[5] = experts.down_proj.data[5] = torch.nan
    x_TD, index_TK, weight_TK = torch.randn(8, 16), torch.tensor([[5, 1]] * 8), torch.tensor([[0.1, 0.9]] * 8)
    with torch.inference_mode():
        assert experts(x_TD, index_TK, weight_TK).isnan().all()
        with skip_experts(model, mixtral.family, {2: 0.2}):
            assert experts(x_TD, index_TK, weight_TK).isfinite().all()


def test_at_beta_0_nothing_is_skipped_and_nothing_changes(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    model = load_checkpoint(checkpoint.path, CPU)
    plain = logits(model, tokens_BT)
    with skip_experts(model, checkpoint.family, betas(checkpoint, 0.0)) as skips:
        # It runs experts by another function, which may add up in another order.
        torch.testing.assert_close(logits(model, tokens_BT), plain, rtol=1e-5, atol=1e-5)
    assert {skip.so_far().share() for skip in skips.values()} == {0.0}


def top_1(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model whose routers choose one expert a token."""
    model = load_checkpoint(checkpoint.path, CPU)
    for index in betas(checkpoint, 0.0):
        layers_of(model, checkpoint.family)[index].router.top_k = 1
    return model


def test_at_a_huge_beta_a_top_2_model_is_top_1(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """In families that renormalize the one that is left has gate 1, in the others its own share of all experts."""
    model = load_checkpoint(checkpoint.path, CPU)
    with skip_experts(model, checkpoint.family, betas(checkpoint, 1e9)) as skips:
        skipped = logits(model, tokens_BT)
    torch.testing.assert_close(skipped, logits(top_1(checkpoint), tokens_BT))
    assert {skip.so_far().share() for skip in skips.values()} == {0.5}
    assert {skip.total for skip in skips.values()} == {2 * tokens_BT.numel()}


def test_layers_of_unequal_size_skip_too(
    checkpoint: Checkpoint,
    tokens_BT: Tensor,
    write_regrouped: Callable[[Checkpoint, dict[int, list[list[int]]]], Checkpoint],
) -> None:
    """A slot that is left out is numbered beyond the layer's own experts, not beyond those of the first layer."""
    written = write_regrouped(checkpoint, {1: [[0], [1], [2], [3]], 2: [[0], [2, 4], [5]]})
    model = load_checkpoint(written.path, CPU)
    with skip_experts(model, written.family, betas(written, 1e9)):
        skipped = logits(model, tokens_BT)
    torch.testing.assert_close(skipped, logits(top_1(written), tokens_BT))


def test_only_the_layers_named_skip(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    """The layers of a loaded model share one config, through which all of them are told how to run."""
    model = load_checkpoint(mixtral.path, CPU)
    with skip_experts(model, mixtral.family, {0: 1e9, 1: 0.0, 2: 0.0}):
        all_named = logits(model, tokens_BT)
    with skip_experts(model, mixtral.family, {0: 1e9}) as skips:
        # The other layers run their experts by another function, which may add up in another order.
        torch.testing.assert_close(logits(model, tokens_BT), all_named, rtol=1e-5, atol=1e-5)
    assert skips.keys() == {0}


def test_nothing_is_left_behind_even_after_an_error(
    tiny_model: Callable[[str], Path], tokens_BT: Tensor, mixtral: Checkpoint
) -> None:
    model = load_checkpoint(tiny_model("mixtral"), CPU)
    plain, implementation = logits(model, tokens_BT), model.config._experts_implementation
    with pytest.raises(RuntimeError, match="stop"), skip_experts(model, mixtral.family, betas(mixtral, 1e9)):
        raise RuntimeError("stop")
    assert model.config._experts_implementation == implementation != "skipping"
    experts = last_layer(model, mixtral).experts
    assert experts.config is model.config
    assert not hasattr(experts, "skip")
    assert not experts._is_expert_parallel
    assert torch.equal(logits(model, tokens_BT), plain)
    with skip_experts(model, mixtral.family, {}) as skips:
        assert torch.equal(logits(model, tokens_BT), plain)
    assert skips == {}


def test_a_layer_that_was_not_run_has_no_share(mixtral: Checkpoint) -> None:
    with skip_experts(load_checkpoint(mixtral.path, CPU), mixtral.family, {1: 0.5}) as skips:
        pass
    assert skips[1].so_far().share() is None
