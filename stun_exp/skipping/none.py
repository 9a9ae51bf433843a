"""Skip nothing."""

from typing import TYPE_CHECKING, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.skip import GateRatios


class NoSkipping(Component):
    """Runs every expert that the router chooses."""

    skips: ClassVar[bool] = False

    def statistic(self, layer: "ExpertSource") -> "GateRatios | None":
        return None

    def beta(self, ratios: "GateRatios") -> float:
        raise AssertionError("no layer has a threshold")
