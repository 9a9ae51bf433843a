"""DBRX: experts lie above one another in three matrices of E * F rows.

Shapes: E experts, F expert width, D hidden size, T tokens, K experts a token.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightTransform
from transformers.models.dbrx.modeling_dbrx import DbrxFFN, DbrxRouter

from stun_exp.models.experts import GatedExperts


class _Router(DbrxRouter):  # type: ignore[misc]
    def forward(self, hidden_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = super().forward(hidden_BTD)
        weight_TK, index_TK = logits_TE.softmax(dim=1).topk(self.top_k, dim=-1)
        if self.norm is not None:
            weight_TK = weight_TK / torch.norm(weight_TK, p=self.norm, dim=-1, keepdim=True)
        return logits_TE, weight_TK, index_TK


class _Block(DbrxFFN):  # type: ignore[misc]
    def forward(self, hidden_BTD: Tensor) -> Tensor:
        _, weight_TK, index_TK = self.router(hidden_BTD)
        output_TD: Tensor = self.experts(hidden_BTD.flatten(0, 1), index_TK, weight_TK)
        return output_TD.view_as(hidden_BTD)


class _Rows(ConversionOps):  # type: ignore[misc]
    """Matrices (E * F, D) <-> one tensor (E, F of each, D), or (E, D, F) if `transposed`."""

    def __init__(self, width: int, transposed: bool = False, inverse: bool = False):
        self.width = width
        self.transposed = transposed
        self.inverse = inverse

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **_: Any
    ) -> dict[str, Tensor]:
        given = [input_dict[pattern] for pattern in source_patterns]  # gate first, in whatever order they were read
        inputs = [value[0] if isinstance(value, list) else value for value in given]
        if self.inverse:
            (fused,) = inputs
            parts = (fused.mT if self.transposed else fused).split(self.width, dim=1)
            return dict(zip(target_patterns, (part.flatten(0, 1) for part in parts), strict=True))
        fused = torch.cat([matrix.view(-1, self.width, matrix.shape[1]) for matrix in inputs], dim=1)
        return {target_patterns[0]: fused.mT.contiguous() if self.transposed else fused}

    @property
    def reverse_op(self) -> ConversionOps:
        return _Rows(self.width, self.transposed, not self.inverse)


def fuse_(block: nn.Module, config: Any) -> None:
    """Replaces the experts; the router takes over what the block did with its logits."""
    stock: Any = block
    settings = config.ffn_config
    num_experts, width, size = settings.moe_num_experts, settings.ffn_hidden_size, config.d_model
    act_fn = stock.experts.mlp.activation_fn
    shapes = {"gate_up_proj": (num_experts, 2 * width, size), "down_proj": (num_experts, size, width)}
    stock.experts = GatedExperts(config, act_fn, **shapes)
    stock.router.top_k = stock.top_k
    stock.router.norm = stock.moe_normalize_expert_weights
    stock.router.norm_topk_prob = stock.router.norm == 1
    stock.router.__class__ = _Router
    stock.__class__ = _Block


def conversions(config: Any) -> list[WeightTransform]:
    """w1 and v1 are gate and up; w2 holds the columns of the down projection as rows."""
    width = config.ffn_config.ffn_hidden_size
    return [
        WeightConverter(
            ["ffn.experts.mlp.w1", "ffn.experts.mlp.v1"], "ffn.experts.gate_up_proj", operations=[_Rows(width)]
        ),
        WeightConverter("ffn.experts.mlp.w2", "ffn.experts.down_proj", operations=[_Rows(width, transposed=True)]),
    ]
