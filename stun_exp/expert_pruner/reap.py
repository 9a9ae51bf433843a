"""REAP: router-weighted expert activation pruning (arXiv 2510.13999)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from stun_exp.expert_pruner.scores import ExpertScores

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class REAP(ExpertScores):
    """Mean over the tokens routed to an expert of g ||y||, its gate times the L2 norm of its output."""

    gate: Literal["model", "softmax"]
    """`model`: what the model multiplies the output with. `softmax`: a softmax over all experts, as in the published
    code, which renormalizes the chosen ones only where the config has `norm_topk_prob`, so not for Mixtral, though that
    model does."""

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        if self.gate == "model":
            return super().statistics(layer)
        from stun_exp.expert_pruner.softmax_gate import SoftmaxActivity

        return [SoftmaxActivity(layer.num_experts)]

    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertActivity

        return one(ExpertActivity, statistics).reap_E()
