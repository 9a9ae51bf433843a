"""A good subset of experts by Lu et al.'s loss, where there are too many to look at all of them."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from stun_exp.expert_pruner.reconstruction.pruner import ReconstructionPruner
from stun_exp.moe.plan import LayerPlan, Plan

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.expert_pruner.reconstruction.search import Losses, Removed


class SubsetSearch(ReconstructionPruner):
    """Beam search by size, then exchanges of one removed for one kept expert as long as they help.

    Where the exact answer is within reach it is computed too, and the report has the optimality gap: the loss found,
    over the least there is, minus 1.
    """

    beam_width: int = Field(ge=1)
    """Sets of each size that are extended."""
    gap_max_subsets: int = Field(ge=0)
    """Measure the gap if `exhaustive` would have no more to visit than this."""

    def search(self, layer: "ExpertSource", losses: "Losses", num_removed: int) -> "tuple[Removed, dict[str, Any]]":
        from stun_exp.expert_pruner.reconstruction.search import beam, exact, exact_cost, exchange

        removed, loss = exchange(losses, *beam(losses, num_removed, self.beam_width))
        facts = {"loss": loss, "gap": None}
        if exact_cost(layer.num_experts, num_removed, layer.renormalizes) <= self.gap_max_subsets:
            _, least = exact(losses, num_removed)
            facts["gap"] = max(loss / least - 1, 0.0) if least > 0 else 0.0  # below 0 by rounding alone
        return removed, facts

    def plan(self, findings: list[LayerPlan]) -> Plan:
        unknown = [str(layer.layer) for layer in findings if layer.facts["gap"] is None]
        return Plan(findings, _not_measured(unknown, self.gap_max_subsets))


def _not_measured(layers: list[str], limit: int) -> list[str]:
    if not layers:
        return []
    return [
        f"expert_pruner=subset_search: no optimality gap for layer {', '.join(layers)}: more subsets than "
        f"expert_pruner.gap_max_subsets={limit:,}"
    ]
