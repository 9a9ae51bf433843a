"""NLLB-MoE: two experts a token, less those beyond an expert's capacity.

transformers 5.23 hands its experts a mask of chosen experts where they expect numbers: every token's first choice runs
through expert 1, its second through expert 0, and the others never run. This is the routing as published (Costa-jussà
et al., arXiv 2207.04672, section 6.2; fairseq's top-2 gate): the experts that the router chose, weighted by its gates.

Shapes: T tokens, K = 2 experts a token, E experts, F expert width, D hidden size.
"""

from typing import Any

from torch import Tensor, nn
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightTransform
from transformers.models.nllb_moe.modeling_nllb_moe import NllbMoeSparseMLP, NllbMoeTop2Router

from stun_exp.models.experts import BiasedExperts


class _Router(NllbMoeTop2Router):  # type: ignore[misc]
    top_k = 2

    def forward(self, hidden_TD: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, gates and experts; an expert beyond its capacity is numbered E, which is nobody."""
        _, gate_TE, logits_TE = super().forward(hidden_TD, padding_mask)
        weight_TK, index_TK = gate_TE.topk(self.top_k, dim=-1)
        return logits_TE, weight_TK, index_TK.masked_fill(weight_TK == 0, self.num_experts)


class _Block(NllbMoeSparseMLP):  # type: ignore[misc]
    def forward(self, hidden_BTD: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        hidden_TD = hidden_BTD.flatten(0, 1)
        _, weight_TK, index_TK = self.router(hidden_TD, padding_mask)
        # Experts were dropped out in training; in use their sum is scaled down to make up for it. The gates keep their
        # sum of 1, which whoever computes the gates of fewer experts goes by.
        output_TD: Tensor = self.experts(hidden_TD, index_TK, weight_TK) * self.keep_share
        return output_TD.view_as(hidden_BTD)


def fuse_(block: nn.Module, config: Any) -> None:
    """Replaces the module list of experts; ValueError if a token's second expert is left to chance."""
    if config.second_expert_policy != "all":
        raise ValueError(
            f"config.json: second_expert_policy={config.second_expert_policy} chooses experts by chance, so that no "
            "two passes see the same ones; set it to all"
        )
    stock: Any = block
    first = stock.experts["expert_0"]
    num_experts, width, size = config.num_experts, first.fc1.out_features, config.d_model
    stock.keep_share = 1 - config.moe_token_dropout
    stock.experts = BiasedExperts(
        config,
        first.act,
        up_proj=(num_experts, width, size),
        up_proj_bias=(num_experts, width),
        down_proj=(num_experts, size, width),
        down_proj_bias=(num_experts, size),
    )
    stock.experts._is_expert_parallel = True  # leaves out places numbered E
    stock.router.__class__ = _Router
    stock.__class__ = _Block


def conversions(config: Any) -> list[WeightTransform]:
    """fc1 and fc2 are the up and down projections."""
    names = {
        "fc1.weight": "up_proj",
        "fc1.bias": "up_proj_bias",
        "fc2.weight": "down_proj",
        "fc2.bias": "down_proj_bias",
    }
    return [
        WeightConverter(f".experts.expert_*.{key}", f".experts.{name}", operations=[MergeModulelist()])
        for key, name in names.items()
    ]
