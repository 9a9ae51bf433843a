"""The routers of encoder-decoders: what transformers computes, what was published, and tokens over capacity.

Shapes: B sequences, S positions, T = B * S tokens, E experts, F expert width, D hidden size.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.load import load_checkpoint
from stun_exp.expert_pruner.reconstruction.token_grams import TokenGrams
from stun_exp.moe.layers import MoELayer, layers_of
from stun_exp.moe.observe import Statistic, observe
from stun_exp.moe.statistics import Coactivation, ExpertTokens
from stun_exp.streaming.walk import Walk

Settings = Callable[..., Checkpoint]
Logits = Callable[..., Tensor]
CPU = torch.device("cpu")
E, D, KEEP = 6, 16, 0.8  # of the tiny models; KEEP is one less NLLB's moe_token_dropout


class Seen(Statistic):
    """How many tokens each expert was shown, and what all gave together."""

    def __init__(self) -> None:
        self.count_E = torch.zeros(E, dtype=torch.int64)
        self.output_TD = torch.empty(0)

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        self.count_E[expert] += len(x_ND)

    def output(self, y_TD: Tensor) -> None:
        self.output_TD = y_TD


def routed_to(layer: MoELayer, experts_BS: list[list[int]]) -> Tensor:
    """Hidden states that the layer's router, whose rows are made unit vectors here, sends to the named experts."""
    layer.router.classifier.weight.copy_(torch.eye(E, D))
    noise_BSD = torch.rand(len(experts_BS), len(experts_BS[0]), D, generator=torch.Generator().manual_seed(0))
    return 5 * torch.eye(E, D)[torch.tensor(experts_BS)] + 0.1 * noise_BSD


# --- Switch


@pytest.mark.parametrize("capacity", [64, 2])
def test_switch_is_stock_switch(
    with_settings: Settings, logits: Logits, sources_BT: list[Tensor], targets_BT: list[Tensor], capacity: int
) -> None:
    """Also for tokens over an expert's capacity, which pass the layer unchanged. Capacity is each sequence's own."""
    checkpoint = with_settings("switch_transformers", expert_capacity=capacity)
    stock = AutoModelForSeq2SeqLM.from_pretrained(checkpoint.path).eval()
    dropped = []
    stock.encoder.block[1].layer[1].mlp.router.register_forward_hook(
        lambda module, args, output: dropped.append(int((output[0].sum(-1) == 0).sum()))
    )
    theirs = logits(stock, sources_BT[0], targets_BT[0])
    # Weights that lie elsewhere in memory may take other kernels, which differ in the last digits.
    ours = logits(load_checkpoint(checkpoint.path, CPU), sources_BT[0], targets_BT[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (dropped[0] > 0) == (capacity == 2)


def test_a_switch_token_over_capacity_is_seen_by_no_expert(with_settings: Settings) -> None:
    """Experts 0, 1 and 2 are chosen by 5, 3 and 1 positions of either sequence; a capacity of 2 serves 2, 2 and 1."""
    layer = with_settings("switch_transformers", expert_capacity=2).read_layer(1)
    hidden_BSD = routed_to(layer, [[0, 1, 0, 1, 0, 2, 0, 1, 0]] * 2)
    seen, tokens, together = Seen(), ExpertTokens(E), Coactivation(E)
    with torch.inference_mode(), observe(layer, [seen, tokens, together]):
        layer.block(hidden_BSD)
    assert seen.count_E.tolist() == tokens.count_E.tolist() == [4, 4, 2, 0, 0, 0]
    assert not together.count_EE.any()
    served = [True, True, True, True, False, True, False, False, False]
    assert seen.output_TD.any(dim=1).tolist() == served * 2


def test_a_reconstruction_search_refuses_tokens_over_capacity(with_settings: Settings) -> None:
    """Who is over capacity depends on who else is left, which one token's inner products do not say."""
    layer = with_settings("switch_transformers", expert_capacity=2).read_layer(1)
    hidden_BSD = routed_to(layer, [[0, 0, 0, 1]])
    grams = TokenGrams(E, 1, 2, renormalizes=False, chunk_tokens=64)
    refused = pytest.raises(ValueError, match=r"over the capacity.*expert_pruner=reap")
    with refused, torch.inference_mode(), observe(layer, [grams]):
        layer.block(hidden_BSD)


# --- NLLB


def published(
    layer: MoELayer, x_TD: Tensor, fraction: float, normalize_first: bool, padding: list[bool]
) -> tuple[Tensor, list[int]]:
    """The block's output, and how many tokens each expert serves, by fairseq's top-2 gating, token by token.

    Costa-jussà et al., arXiv 2207.04672, section 6.2.

    All first choices take their places at the experts before the second ones do. A choice beyond its expert's capacity
    is gone; what is left of a token's gates sums to 1, unless they were made to before that. Outputs are scaled by
    1 - 0.2, the share of tokens whose experts training masked.
    """
    gates_TE = (x_TD @ layer.router.classifier.weight.T).softmax(1)
    choices = [sorted(range(E), key=lambda e: -float(gate_E[e]))[:2] for gate_E in gates_TE]
    capacity, taken = math.ceil(fraction * len(x_TD)), [0] * E
    served: list[list[int]] = [[] for _ in x_TD]
    for which in (0, 1):
        for token in (t for t in range(len(x_TD)) if not padding[t]):
            expert = choices[token][which]
            if taken[expert] < capacity:
                served[token].append(expert)
            taken[expert] += 1
    out_TD = torch.zeros_like(x_TD)
    for token, experts in enumerate(served):
        total = sum(float(gates_TE[token, e]) for e in (choices[token] if normalize_first else experts))
        for e in experts:
            h_F = (layer.experts.up_proj[e] @ x_TD[token] + layer.experts.up_proj_bias[e]).relu()
            y_D = layer.experts.down_proj[e] @ h_F + layer.experts.down_proj_bias[e]
            out_TD[token] += KEEP * float(gates_TE[token, e]) / total * y_D
    return out_TD, [sum(e in experts for experts in served) for e in range(E)]


@pytest.mark.parametrize("fraction", [1.0, 0.2])
@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("padded", [0, 3])
def test_nllb_routes_as_published(with_settings: Settings, fraction: float, normalize_first: bool, padded: int) -> None:
    """20 tokens of which the last may be padding, which takes nobody's place; a fraction of 0.2 is a capacity of 4."""
    settings = {"moe_eval_capacity_token_fraction": fraction, "normalize_router_prob_before_dropping": normalize_first}
    layer = with_settings("nllb-moe", **settings).read_layer(1)
    x_TD = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    padding = [token >= 20 - padded for token in range(20)]
    mask = torch.tensor(padding).float().expand(1, 1, 20, 20) * torch.finfo().min if padded else None
    seen = Seen()
    with torch.inference_mode(), observe(layer, [seen]):
        ours_TD = layer.block(x_TD[None], mask)[0]
    expected_TD, count_E = published(layer, x_TD, fraction, normalize_first, padding)
    torch.testing.assert_close(ours_TD, expected_TD, rtol=1e-5, atol=1e-5)
    assert seen.count_E.tolist() == count_E
    assert (sum(count_E) < 2 * (20 - padded)) == (fraction < 1)


def test_stock_transformers_sends_every_first_choice_through_expert_1(tiny_model: Callable[[str], Path]) -> None:
    """Why this family's routing is written anew. When this fails, stock was mended: compare ours with it instead."""
    stock = AutoModelForSeq2SeqLM.from_pretrained(tiny_model("nllb-moe")).eval().model.encoder.layers[1].ffn
    layer = Checkpoint(tiny_model("nllb-moe"), None).read_layer(1)
    x_TD = torch.randn(20, D, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        weight_TK, index_TK = (x_TD @ stock.router.classifier.weight.T).softmax(1).topk(2)
        weight_TK = weight_TK / weight_TK.sum(1, keepdim=True)
        first_TD, second_TD = (stock.experts[f"expert_{e}"](x_TD) for e in (1, 0))
        wrong_TD = KEEP * (weight_TK[:, :1] * first_TD + weight_TK[:, 1:] * second_TD)
        torch.testing.assert_close(stock(x_TD[None])[0], wrong_TD, rtol=1e-5, atol=1e-5)
        ours_TD = layer.block(x_TD[None])[0]
    assert len(index_TK.unique()) == E
    chose_those_T = (index_TK == torch.tensor([1, 0])).all(1)
    assert torch.equal((ours_TD - wrong_TD).abs().amax(1) < 1e-4, chose_those_T)


def test_a_second_expert_by_chance_is_refused(with_settings: Settings) -> None:
    with pytest.raises(ValueError, match="second_expert_policy=random chooses experts by chance"):
        with_settings("nllb-moe", second_expert_policy="random")


def test_the_gates_that_are_observed_sum_to_one(
    tiny_model: Callable[[str], Path], sources_BT: list[Tensor], targets_BT: list[Tensor]
) -> None:
    """Scaled by the 1 - 0.2 they would be no softmax of the logits, and a reconstruction search would refuse them."""

    class Gates(Statistic):
        def routing(self, router_logits_TE: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> None:
            torch.testing.assert_close(topk_weight_TK.sum(1), torch.ones(len(topk_weight_TK)))
            seen.append(len(topk_weight_TK))

    seen: list[int] = []
    checkpoint = Checkpoint(tiny_model("nllb-moe"), None)
    for step in Walk(checkpoint, sources_BT[:1], CPU, "test", targets_BT=targets_BT[:1]):
        with observe(step.layer, [Gates()]):
            step.forward()
    assert seen == [3 * 20, 3 * 11]


@pytest.mark.parametrize("capacity", [{}, {"expert_capacity": 2, "moe_eval_capacity_token_fraction": 0.2}])
def test_pruned_equals_router_masked_within_capacity(
    with_settings: Settings,
    logits: Logits,
    sources_BT: list[Tensor],
    targets_BT: list[Tensor],
    family: str,
    capacity: dict[str, Any],
) -> None:
    """An expert that is never chosen takes nobody's place, so it holds for tokens over capacity too."""
    checkpoint = with_settings(family, **capacity)
    pruned, masked = load_checkpoint(checkpoint.path, CPU), load_checkpoint(checkpoint.path, CPU)
    for index, kept in {1: [0, 2, 3, 5], 3: [1, 2, 4]}.items():
        layers_of(pruned, checkpoint.family)[index].regroup([[expert] for expert in kept])
        gone = torch.tensor([expert for expert in range(E) if expert not in kept])
        layers_of(masked, checkpoint.family)[index].router.classifier.register_forward_hook(
            lambda module, args, out, gone=gone: out.index_fill(-1, gone, -torch.inf)
        )
    found, expected = (logits(model, sources_BT[0], targets_BT[0]) for model in (pruned, masked))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    whole = logits(load_checkpoint(checkpoint.path, CPU), sources_BT[0], targets_BT[0])
    assert not torch.allclose(found, whole, atol=1e-3)
