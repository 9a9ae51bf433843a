"""What an expert pruner is, and what it may look at."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from stun_exp.moe.observe import Statistic
from stun_exp.moe.plan import Plan


class ExpertSource(Protocol):
    """One layer's router and experts; weights are read when asked for."""

    @property
    def index(self) -> int: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def top_k(self) -> int: ...

    def router_rows_ED(self) -> Tensor: ...

    def expert_weights(self, experts: Sequence[int]) -> Tensor:
        """The named experts' parameters, each flattened to one fp32 row."""
        ...


class ExpertPruner(Protocol):
    """Decides which experts remain; changes nothing."""

    def statistic(self, num_experts: int) -> Statistic | None:
        """What to gather in one layer over the calibration tokens; None if no data is needed."""
        ...

    def plan(self, layers: Sequence[ExpertSource], statistics: Sequence[Statistic | None]) -> Plan:
        """The plan for all layers with experts at once, so that a budget may be the whole model's."""
        ...
