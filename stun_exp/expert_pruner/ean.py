"""EAN, expert activation norm: how large an expert's outputs are, without the gate."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from stun_exp.expert_pruner.scores import ExpertScores

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class EAN(ExpertScores):
    """L2 norm of the expert's output over the tokens routed to it (MC-Suite, arXiv 2504.05586)."""

    reduce: Literal["sum", "mean"]
    """`sum`, as in REAP's tables, also counts how often the expert is chosen; `mean` does not."""

    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertActivity

        activity = one(ExpertActivity, statistics)
        norm_E: Tensor = activity.norm_E
        return norm_E if self.reduce == "sum" else norm_E / activity.count_E.clamp(min=1)
