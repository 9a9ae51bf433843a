"""The best subset of experts, of all there are (Lu et al., arXiv 2402.14800)."""

from math import comb
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stun_exp.expert_pruner.reconstruction.pruner import ReconstructionPruner

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.expert_pruner.reconstruction.search import Losses, Removed
    from stun_exp.moe.observe import Statistic


class Exhaustive(ReconstructionPruner):
    """The subset with the least reconstruction loss, without a forward pass for each.

    The authors run the layer once for each of its C(n, r) subsets. Here the losses of all subsets are computed together
    where the router renormalizes its gates (`lattice`), and one by one from Gram matrices where it does not.
    """

    max_subsets: int = Field(ge=1)
    """Refuse to look at more sets than this: those of at most n - r of n experts; one by one, each counts as 1,024."""

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        self._check(layer, round(self.ratio * layer.num_experts))  # before anything is run
        return super().statistics(layer)

    def search(self, layer: "ExpertSource", losses: "Losses", num_removed: int) -> "tuple[Removed, dict[str, Any]]":
        from stun_exp.expert_pruner.reconstruction.search import exact

        self._check(layer, num_removed)
        removed, loss = exact(losses, num_removed)
        return removed, {"loss": loss}

    def _check(self, layer: "ExpertSource", num_removed: int) -> None:
        from stun_exp.expert_pruner.reconstruction.search import exact_cost

        cost = exact_cost(layer.num_experts, num_removed, layer.renormalizes)
        if cost > self.max_subsets:
            subsets = comb(layer.num_experts, num_removed)
            raise ValueError(
                f"expert_pruner=exhaustive: layer {layer.index} has {subsets:,} subsets of "
                f"{layer.num_experts - num_removed} of its {layer.num_experts} experts, which counts as {cost:,}; "
                f"expert_pruner.max_subsets={self.max_subsets:,}; choose expert_pruner=subset_search, or raise it"
            )
