"""Keep all experts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stun_exp.component import Component

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic
    from stun_exp.moe.plan import Plan


class KeepAllExperts(Component):
    """Removes nothing."""

    def statistic(self, num_experts: int) -> "Statistic | None":
        return None

    def plan(self, layers: "Sequence[ExpertSource]", statistics: "Sequence[Statistic | None]") -> "Plan":
        from stun_exp.moe.plan import Plan, keep

        return Plan([keep(layer.index, layer.num_experts, list(range(layer.num_experts))) for layer in layers])
