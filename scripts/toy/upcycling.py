"""What a training begins with: random weights, or a mixture made of a dense model; and many experts run as one.

Shapes: T tokens, K experts per token, E experts, D hidden size, F width of an expert, N = E * F.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from scripts.toy.recipes import Phase
from stun_exp.models import register

ROUTER_STD = 0.02
MASKED = "masked"
"""How transformers knows `masked_experts`."""


def start(phase: Phase, tokenizer: PreTrainedTokenizerFast, before: PreTrainedModel | None) -> PreTrainedModel:
    """What a phase begins with: random weights, or the model of the phase before it, made a mixture if it is dense.

    That model has the weights that are shipped of it, in bf16.
    """
    register()
    config = phase.config(tokenizer)
    torch.manual_seed(phase.recipe.seed)
    if before is None:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return model
    before = before.float()
    return before if type(before.config) is type(config) else upcycle(before, config, phase.recipe.seed)


def upcycle(dense: PreTrainedModel, config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A mixture whose experts are copies of the dense model's feed-forward (Sparse Upcycling, arXiv 2212.05055).

    Experts narrower than the feed-forward are slices of it, in turn, scaled by the number of slices, since the
    weights of the chosen experts add up to one. Routers are drawn from N(0, 0.02). With whole copies the mixture
    computes what the dense model does, whatever its routers choose.
    """
    slices, rest = divmod(dense.config.intermediate_size, config.intermediate_size)
    assert rest == 0, "experts must divide the dense feed-forward"
    assert config.num_local_experts % slices == 0, "every slice must have as many copies"
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    weights, source = model.state_dict(), dense.state_dict()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in weights.items():
        stem, _, tail = name.partition(".mlp.")
        if tail == "gate.weight":
            weight.normal_(std=ROUTER_STD, generator=generator)
        elif tail:
            weight.copy_(_expert_copies(source, f"{stem}.mlp.", tail.rpartition(".")[2], slices, len(weight)))
        else:
            weight.copy_(source[name])
    return model


def _expert_copies(source: dict[str, Tensor], prefix: str, name: str, slices: int, experts: int) -> Tensor:
    if name == "down_proj":
        parts = [slices * part for part in source[f"{prefix}down_proj.weight"].chunk(slices, dim=1)]
    else:
        gate, up = (source[f"{prefix}{half}_proj.weight"].chunk(slices) for half in ("gate", "up"))
        parts = [torch.cat(pair) for pair in zip(gate, up, strict=True)]
    return torch.stack(parts).repeat(experts // slices, 1, 1)


def masked_experts(experts: Any, hidden_TD: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> Tensor:
    """The weighted sum of each token's experts: all experts' hidden units at once, those of the others times 0."""
    num_experts, _, width = experts.down_proj.shape
    gate_DN, up_DN = (half.flatten(0, 1).T for half in experts.gate_up_proj.chunk(2, dim=1))
    weight_TE = torch.zeros(len(hidden_TD), num_experts, dtype=topk_weight_TK.dtype, device=hidden_TD.device)
    weight_TE = weight_TE.scatter(1, topk_index_TK, topk_weight_TK)
    hidden_TEF = (experts.act_fn(hidden_TD @ gate_DN) * (hidden_TD @ up_DN)).unflatten(1, (num_experts, width))
    weighted_TN: Tensor = (hidden_TEF * weight_TE[..., None]).flatten(1)
    routed_TD: Tensor = weighted_TN @ experts.down_proj.mT.flatten(0, 1)
    return routed_TD


ALL_EXPERTS_FUNCTIONS.register(MASKED, masked_experts)
