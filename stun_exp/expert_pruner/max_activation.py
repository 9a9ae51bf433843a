"""Max activation: experts with an outlier in their outputs stay."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stun_exp.expert_pruner.scores import ExpertScores

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class MaxActivation(ExpertScores):
    """Largest absolute entry of the expert's output for any token routed to it.

    A baseline in REAP's code, which takes the largest signed entry and so misses negative outliers.
    """

    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertActivity

        max_E: Tensor = one(ExpertActivity, statistics).max_E
        return max_E
