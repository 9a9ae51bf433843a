"""Each prunable matrix has the statistic of exactly the inputs that it multiplies."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.inputs import InputStatistics, SharedInputs
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.observe import observe
from stun_exp.moe.statistics import ExpertTokens
from stun_exp.streaming.walk import Step, Walk
from stun_exp.unstructured_pruner.masks import SquaredNorm

CPU = torch.device("cpu")


def gated(num_inputs: int) -> SquaredNorm:
    return SquaredNorm(num_inputs, gated=True)


def last_step(checkpoint: Checkpoint, tokens_BT: Tensor) -> Step:
    """The last layer, which has experts in every tiny model, in two batches, not run yet."""
    return list(Walk(checkpoint, [tokens_BT[:3], tokens_BT[3:]], CPU, "test"))[-1]


def run(step: Step, statistics: Sequence[InputStatistics[SquaredNorm] | SharedInputs[SquaredNorm]]) -> None:
    with observe(step.layer, statistics):
        step.forward()


class Token:
    """One token at one layer with experts, and what the router makes of it, in fp64 from the stock model."""

    def __init__(self, x_D: Tensor, logits_E: Tensor, top_k: int, renormalizes: bool):
        probability_E = logits_E.double().softmax(0)
        self.x_D = x_D.double()
        self.experts = probability_E.argsort(descending=True)[:top_k].tolist()
        total = sum(float(probability_E[e]) for e in self.experts) if renormalizes else 1.0
        self.gates = {e: float(probability_E[e]) / total for e in self.experts}


def tokens_of(checkpoint: Checkpoint, tokens_BT: Tensor, index: int) -> list[Token]:
    """Every token as it reaches the experts of a layer of the whole model, run by stock transformers."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    block = model.model.layers[index].mlp
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        seen.append((args[0].flatten(0, -2), output[0].flatten(0, -2)))

    block.gate.register_forward_hook(keep)
    with torch.inference_mode():
        model(tokens_BT)
    ((x_TD, logits_TE),) = seen
    renormalizes = getattr(checkpoint.config, "norm_topk_prob", True)
    return [Token(x_D, logits_E, 2, renormalizes) for x_D, logits_E in zip(x_TD, logits_TE, strict=True)]


def by_hand(layer: MoELayer, tokens: Sequence[Token], expert: int, what: str) -> tuple[list[float], list[float]]:
    """Norms of the inputs and the hidden units of an expert, token by token: `routed`, `gated` or `every` token."""
    weights = {matrix.name: matrix.weight_OC.double() for matrix in layer.matrices()}
    gate, up = (weights[f"mlp.experts.{expert}.{name}_proj"] for name in ("gate", "up"))
    x_sum, h_sum = torch.zeros(gate.shape[1]).double(), torch.zeros(gate.shape[0]).double()
    for token in tokens:
        if what != "every" and expert not in token.experts:
            continue
        factor = token.gates[expert] if what == "gated" else 1.0
        hidden = nn.functional.silu(gate @ token.x_D) * (up @ token.x_D)
        x_sum += (token.x_D * factor) ** 2
        h_sum += (hidden * factor) ** 2
    return x_sum.sqrt().tolist(), h_sum.sqrt().tolist()


def test_every_feed_counts_its_own_tokens(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """A linear sees every token, an expert those routed to it; a feed that none updates would prune blindly."""
    for step in Walk(checkpoint, [tokens_BT[:3], tokens_BT[3:]], CPU, "test"):
        matrices = list(step.layer.matrices())
        inputs = InputStatistics(step.layer, matrices, SquaredNorm)
        tokens = ExpertTokens(step.layer.num_experts)
        with observe(step.layer, [inputs, tokens]):
            step.forward()
        for matrix in matrices:
            statistic = inputs.by_feed[matrix.feed]
            expert = int(matrix.name.split(".")[2]) if matrix.kind == "expert" else None
            expected = tokens_BT.numel() if expert is None else int(tokens.count_E[expert])
            assert statistic.num_tokens == expected, matrix.name
            assert statistic.norm_C().shape == (matrix.weight_OC.shape[1],)


def test_feeds_out_of_scope_are_not_gathered(mixtral: Checkpoint, tokens_BT: Tensor) -> None:
    step = last_step(mixtral, tokens_BT)
    experts = [matrix for matrix in step.layer.matrices() if matrix.kind == "expert"]
    inputs = InputStatistics(step.layer, experts, SquaredNorm)
    run(step, [inputs])
    assert inputs.by_feed.keys() == {f"mlp.experts.{e}.{end}" for e in range(6) for end in ("in", "hidden")}


@pytest.mark.parametrize("what", ["routed", "gated"])
def test_an_experts_norms_equal_those_of_the_whole_model_by_hand(
    checkpoint: Checkpoint, tokens_BT: Tensor, what: str
) -> None:
    """Gates as the model multiplies outputs with them: scaled to sum 1 in some families and not in others."""
    tokens = tokens_of(checkpoint, tokens_BT, 2)
    step = last_step(checkpoint, tokens_BT)
    inputs = InputStatistics(step.layer, list(step.layer.matrices()), gated if what == "gated" else SquaredNorm)
    run(step, [inputs])
    for expert in range(6):
        x_norm, h_norm = by_hand(step.layer, tokens, expert, what)
        assert inputs.by_feed[f"mlp.experts.{expert}.in"].norm_C().tolist() == pytest.approx(x_norm, rel=1e-4)
        assert inputs.by_feed[f"mlp.experts.{expert}.hidden"].norm_C().tolist() == pytest.approx(h_norm, rel=1e-4)


def test_an_expert_of_every_token_is_shown_every_token_ungated(checkpoint: Checkpoint, tokens_BT: Tensor) -> None:
    """And each once, the routed ones not twice; its neighbors see their own alone."""
    tokens = tokens_of(checkpoint, tokens_BT, 2)
    step = last_step(checkpoint, tokens_BT)
    inputs = InputStatistics(step.layer, list(step.layer.matrices()), gated, {1, 4})
    run(step, [inputs])
    for expert in range(6):
        x_norm, h_norm = by_hand(step.layer, tokens, expert, "every" if expert in (1, 4) else "gated")
        assert inputs.by_feed[f"mlp.experts.{expert}.in"].norm_C().tolist() == pytest.approx(x_norm, rel=1e-4)
        assert inputs.by_feed[f"mlp.experts.{expert}.hidden"].norm_C().tolist() == pytest.approx(h_norm, rel=1e-4)
    assert inputs.by_feed["mlp.experts.4.hidden"].num_tokens == tokens_BT.numel()


@pytest.mark.parametrize("what", ["routed", "gated"])
def test_shared_inputs_are_the_sum_over_all_experts(checkpoint: Checkpoint, tokens_BT: Tensor, what: str) -> None:
    """Squared norms add up: those of every expert, and not of the starved ones alone."""
    tokens = tokens_of(checkpoint, tokens_BT, 2)
    step = last_step(checkpoint, tokens_BT)
    starved = [matrix for matrix in step.layer.matrices() if matrix.expert in (0, 5)]
    shared = SharedInputs(step.layer, starved, gated if what == "gated" else SquaredNorm)
    run(step, [shared])
    ends = [by_hand(step.layer, tokens, expert, what) for expert in range(6)]
    assert shared.by_feed.keys() == {f"mlp.experts.{e}.{end}" for e in (0, 5) for end in ("in", "hidden")}
    for place, end in enumerate(("in", "hidden")):
        total = torch.tensor([norms[place] for norms in ends]).square().sum(0).sqrt().tolist()
        for expert in (0, 5):
            found = shared.by_feed[f"mlp.experts.{expert}.{end}"]
            assert found.norm_C().tolist() == pytest.approx(total, rel=1e-4)
            assert found.num_tokens == 2 * tokens_BT.numel()
