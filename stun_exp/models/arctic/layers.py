"""The parts of Arctic: MLP, router, the two kinds of block, and the decoder layer.

Source of every step: `modeling_arctic.py` of Snowflake/snowflake-arctic-base (the names in brackets are its classes),
checked against the copies that other projects carry and against vLLM's own `arctic.py`. Attention, RMSNorm and fused
experts are those of transformers' Mixtral, from which the published code says it copied them. What differs is here.
In a layer with experts the residual MLP reads the sum after attention, and the experts read the layer's input:

    h = x + attention(input_layernorm(x))
    y = h + residual_mlp(residual_layernorm(h)) + experts(post_attention_layernorm(x))

Shapes: B sequences, S positions, T = B * S tokens, D hidden size, E experts, K experts per token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.mixtral.modeling_mixtral import MixtralAttention, MixtralExperts, MixtralRMSNorm

from stun_exp.models.arctic.configuration import ArcticConfig


class ArcticMLP(nn.Module):
    """w2(act(w1 x) * w3 x), without biases (`ArcticMLP`)."""

    def __init__(self, config: ArcticConfig, width: int):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, width, bias=False)
        self.w2 = nn.Linear(width, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, width, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x_BSD: Tensor) -> Tensor:
        y_BSD: Tensor = self.w2(self.act_fn(self.w1(x_BSD)) * self.w3(x_BSD))
        return y_BSD


class ArcticTopKRouter(nn.Module):
    """Logits, gates and indices of the chosen experts (`ArcticMoE._moe_foreward`, its first half).

    Softmax in fp32 over all experts, then the best K; their gates are scaled to sum 1 only if K > 1, so that a single
    expert keeps its probability as its gate. The gates stay in fp32, and so does their product with the outputs.
    """

    def __init__(self, config: ArcticConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.num_local_experts
        self.norm_topk_prob = self.top_k > 1
        self.weight = nn.Parameter(torch.empty(self.num_experts, config.hidden_size))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = nn.functional.linear(x_TD, self.weight)
        gates_TK, index_TK = logits_TE.softmax(-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            gates_TK = gates_TK / gates_TK.sum(-1, keepdim=True)
        return logits_TE, gates_TK, index_TK


class ArcticSparseBlock(nn.Module):
    """The mixture of experts of a layer that has one (`ArcticMoE` where `is_moe_layer`); drops no token."""

    def __init__(self, config: ArcticConfig):
        super().__init__()
        self.gate = ArcticTopKRouter(config)
        self.experts = MixtralExperts(config)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x_TD = x_BSD.reshape(-1, x_BSD.shape[-1])
        _, gates_TK, index_TK = self.gate(x_TD)
        y_BSD: Tensor = self.experts(x_TD, index_TK, gates_TK).reshape(x_BSD.shape)
        return y_BSD


class ArcticDenseBlock(nn.Module):
    """What a layer without experts holds in the same place: one MLP of an expert's width (`ArcticMoE.mlp`)."""

    def __init__(self, config: ArcticConfig):
        super().__init__()
        self.mlp = ArcticMLP(config, config.intermediate_size)

    def forward(self, x_BSD: Tensor) -> Tensor:
        y_BSD: Tensor = self.mlp(x_BSD)
        return y_BSD


class ArcticDecoderLayer(nn.Module):
    """One layer (`ArcticDecoderLayer`): attention, and either an MLP, or experts, or experts beside a residual MLP."""

    def __init__(self, config: ArcticConfig, index: int):
        super().__init__()
        sparse = config.has_experts(index)
        self.self_attn = MixtralAttention(config, index)
        self.block_sparse_moe = ArcticSparseBlock(config) if sparse else ArcticDenseBlock(config)
        self.input_layernorm = MixtralRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = MixtralRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.has_residual = sparse and config.parallel_attn_mlp_res
        if self.has_residual:
            self.residual_layernorm = MixtralRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.residual_mlp = ArcticMLP(config, config.hidden_size)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended_BSD, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        sum_BSD: Tensor = hidden_states + attended_BSD
        if self.has_residual:
            # The name misleads: here this norm takes what was there before attention.
            block_input_BSD = hidden_states
            residual_BSD = sum_BSD + self.residual_mlp(self.residual_layernorm(sum_BSD))
        else:
            block_input_BSD = residual_BSD = sum_BSD
        y_BSD: Tensor = residual_BSD + self.block_sparse_moe(self.post_attention_layernorm(block_input_BSD))
        return y_BSD
