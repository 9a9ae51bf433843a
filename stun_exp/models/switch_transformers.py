"""Switch Transformers: one expert a token, and none for tokens beyond an expert's capacity.

Shapes: B sequences, S positions, T = B * S tokens, E experts, F expert width, D hidden size.
"""

from typing import Any

from torch import Tensor, nn
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightTransform
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
    SwitchTransformersTop1Router,
)

from stun_exp.models.experts import PlainExperts


class _Router(SwitchTransformersTop1Router):  # type: ignore[misc]
    top_k = 1

    def forward(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, gates and experts; the expert of a token that is over capacity is numbered E, which is nobody."""
        chosen_BSE, weight_BS1, logits_BSE = super().forward(hidden_BSD)
        index_BS1 = chosen_BSE.argmax(-1, keepdim=True).masked_fill(~chosen_BSE.any(-1, keepdim=True), self.num_experts)
        return logits_BSE, weight_BS1.flatten(0, 1), index_BS1.flatten(0, 1)


class _Block(SwitchTransformersSparseMLP):  # type: ignore[misc]
    def forward(self, hidden_BSD: Tensor) -> Tensor:
        _, weight_T1, index_T1 = self.router(hidden_BSD)
        output_TD: Tensor = self.experts(hidden_BSD.flatten(0, 1), index_T1, weight_T1)
        return output_TD.view_as(hidden_BSD)


def fuse_(block: nn.Module, config: Any) -> None:
    """Replaces the module list of experts."""
    stock: Any = block
    act_fn = stock.experts["expert_0"].act
    num_experts, width, size = config.num_experts, config.d_ff, config.d_model
    shapes = {"up_proj": (num_experts, width, size), "down_proj": (num_experts, size, width)}
    stock.experts = PlainExperts(config, act_fn, **shapes)
    stock.experts._is_expert_parallel = True  # leaves out places numbered E
    stock.router.__class__ = _Router
    stock.__class__ = _Block


def conversions(config: Any) -> list[WeightTransform]:
    """wi and wo are the up and down projections."""
    return [
        WeightConverter(".experts.expert_*.wi.weight", ".experts.up_proj", operations=[MergeModulelist()]),
        WeightConverter(".experts.expert_*.wo.weight", ".experts.down_proj", operations=[MergeModulelist()]),
    ]
