"""Router norm: experts with a short router row go; needs no data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stun_exp.expert_pruner.scores import ExpertScores

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class RouterNorm(ExpertScores):
    """L2 norm of the expert's router row (a criterion of MC-Suite, arXiv 2504.05586)."""

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        return []

    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        norm_E: Tensor = layer.router_rows_ED().double().norm(dim=1)
        return norm_E
