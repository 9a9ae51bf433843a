"""Weighted frequency: a token counts for as much as the router trusts the expert with it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stun_exp.expert_pruner.scores import ExpertScores

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class WeightedFrequency(ExpertScores):
    """Sum of the gates that the model multiplies an expert's outputs with (soft counts of SEER-MoE, 2404.05089)."""

    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertActivity

        gate_E: Tensor = one(ExpertActivity, statistics).gate_E
        return gate_E
