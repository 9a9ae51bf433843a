"""What an expert pruner is, and what it may look at."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from stun_exp.config.component import Component

if TYPE_CHECKING:
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

    @property
    def num_groups(self) -> int:
        """Groups of neighboring experts that must keep equally many; 1 for most routers."""
        ...

    @property
    def min_experts(self) -> int:
        """The fewest experts with which the router works."""
        ...

    @property
    def renormalizes(self) -> bool:
        """Whether the chosen experts' gates are scaled to sum 1; if not, a softmax over all experts gives them."""
        ...

    def router_rows_ED(self) -> "Tensor": ...

    def expert_weights(self, experts: Sequence[int]) -> "Iterator[Tensor]":
        """The named experts' flattened parameters in fp32, piece by piece: (len(experts), some of the parameters)."""
        ...


class ExpertPruner(Component):
    """Decides which experts remain; changes nothing.

    It meets one layer at a time, so that what was gathered of a layer can be forgotten before the next, and decides
    for all of them at the end, so that a budget may be the whole model's.
    """

    def removed_share(self) -> float:
        """The share of the routed experts that go."""
        return 0.0

    def has_ratio(self) -> bool:
        """Whether `ratio` is a setting of it; a plan that is replayed has one that nobody can set."""
        return "ratio" in type(self).model_fields

    def is_progressive(self) -> bool:
        """Whether it meets each layer behind the pruned ones; it then gives a LayerPlan as its finding."""
        return False

    def has_equal_layers(self) -> bool:
        """Whether every layer loses its share of an even budget, and not the whole model one of its own."""
        return True

    @abstractmethod
    def statistics(self, layer: ExpertSource) -> "list[Statistic]":
        """What to gather in one layer over the calibration tokens; empty if no data is needed."""

    @abstractmethod
    def examine(self, layer: ExpertSource, statistics: "list[Statistic]", num_kept: int) -> Any:
        """What `plan` needs of one layer. `num_kept` is the layer's share of an even budget."""

    @abstractmethod
    def plan(self, findings: list[Any]) -> "Plan":
        """The plan, from the findings of all layers with experts, in their order."""

    def num_kept(self, findings: list[Any]) -> dict[int, int]:
        """How many experts the plan keeps in each layer; for a pruner that finds that with less than the plan takes."""
        return self.plan(findings).num_kept
