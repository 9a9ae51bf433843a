"""Llama 4 (text): the gate scales an expert's input, not its output.

Shapes: E experts, F expert width, D hidden size, T tokens, K = 1 experts a token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightTransform
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextMoe

from stun_exp.models.experts import TransposedExperts


class _Router(Llama4Router):  # type: ignore[misc]
    def forward(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = nn.functional.linear(hidden_TD, self.weight)
        logit_TK, index_TK = logits_TE.topk(self.top_k, dim=1)
        return logits_TE, logit_TK.float().sigmoid().to(logits_TE.dtype), index_TK


class _Block(Llama4TextMoe):  # type: ignore[misc]
    """transformers runs every expert on every token, all but one of them on zeros; this one runs the chosen expert.

    What goes into an expert is the gated input, so the weight of its output is 1.
    """

    def forward(self, hidden_BTD: Tensor) -> tuple[Tensor, Tensor]:
        hidden_TD = hidden_BTD.reshape(-1, self.hidden_dim)
        logits_TE, weight_TK, index_TK = self.router(hidden_TD)
        routed_TD = self.experts(hidden_TD * weight_TK, index_TK, torch.ones_like(weight_TK))
        return self.shared_expert(hidden_TD).add_(routed_TD), logits_TE


def fuse_(block: nn.Module, config: Any) -> None:
    """ValueError unless one expert is chosen a token, as in every published Llama 4: the gated input is one tensor."""
    if config.num_experts_per_tok != 1:
        raise ValueError(
            f"num_experts_per_tok={config.num_experts_per_tok} in a Llama 4: its gates scale the experts' inputs, "
            "which is supported for one expert a token only"
        )
    stock: Any = block
    experts = {name: tuple(tensor.shape) for name, tensor in stock.experts.named_parameters()}
    stock.experts = TransposedExperts(config, stock.experts.act_fn, **experts)
    stock.router.__class__ = _Router
    stock.__class__ = _Block


def conversions(config: Any) -> list[WeightTransform]:
    """None: the tensors on disk are fused already."""
    return []
