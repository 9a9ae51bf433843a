"""Frequency: the experts that the most calibration tokens are routed to stay."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stun_exp.expert_pruner.scores import ExpertScores

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class Frequency(ExpertScores):
    """Number of tokens whose top-k holds the expert (REAP's baseline; the frequency criterion of Lu et al.)."""

    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertActivity

        count_E: Tensor = one(ExpertActivity, statistics).count_E
        return count_E
