"""Experts in transformers' fused form: what the families that lack one share.

Shapes: E experts, F expert width, D hidden size, T tokens, K experts a token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import use_experts_implementation

from stun_exp.moe.observe import run_experts


class _Experts(nn.Module):
    def __init__(self, config: Any, act_fn: nn.Module, **shapes: tuple[int, ...]):
        super().__init__()
        self.act_fn = act_fn
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape), requires_grad=False))
        self.num_experts = shapes["down_proj"][0]

    def forward(self, hidden_TD: Tensor, topk_index_TK: Tensor, topk_weight_TK: Tensor) -> Tensor:
        return run_experts(self, hidden_TD, topk_index_TK, topk_weight_TK)


@use_experts_implementation
class GatedExperts(_Experts):
    """down(act(gate x) * up x); `gate_up_proj` (E, 2F, D), `down_proj` (E, D, F)."""


@use_experts_implementation(is_transposed=True)
class TransposedExperts(_Experts):
    """down(act(gate x) * up x); `gate_up_proj` (E, D, 2F), `down_proj` (E, F, D)."""


@use_experts_implementation(has_gate=False)
class PlainExperts(_Experts):
    """down(act(up x)); `up_proj` (E, F, D), `down_proj` (E, D, F)."""


@use_experts_implementation(has_gate=False, has_bias=True)
class BiasedExperts(_Experts):
    """down(act(up x + bias)) + bias; `up_proj_bias` (E, F), `down_proj_bias` (E, D) besides the matrices."""
