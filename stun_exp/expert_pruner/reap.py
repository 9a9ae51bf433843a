"""REAP: router-weighted expert activation pruning (arXiv 2510.13999)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stun_exp.expert_pruner.scores import ExpertScores

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class REAP(ExpertScores):
    """Mean over the tokens routed to an expert of g ||y||, its gate times the L2 norm of its output.

    The gate is the one that the model multiplies with. The published code renormalises the gate where the model's
    config has `norm_topk_prob`, so not for Mixtral, which renormalises all the same; here it is renormalised there too.
    """

    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertActivity

        return one(ExpertActivity, statistics).reap_E()
