"""Keep all experts."""

from typing import TYPE_CHECKING

from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.plan import LayerPlan, Plan, keep

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class KeepAllExperts(ExpertPruner):
    """Removes nothing."""

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        return []

    def examine(self, layer: "ExpertSource", statistics: "list[Statistic]", num_kept: int) -> LayerPlan:
        return keep(layer.index, layer.num_experts, range(layer.num_experts))

    def plan(self, findings: list[LayerPlan]) -> Plan:
        return Plan(findings)
