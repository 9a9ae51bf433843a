"""Remove the expert whose removal hurts least, and again: the O(n) variant of STUN's ablation (arXiv 2409.06211)."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stun_exp.expert_pruner.reconstruction.pruner import ReconstructionPruner
from stun_exp.moe.plan import Ranking

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.expert_pruner.reconstruction.search import Losses, Removed


class GreedyReconstruction(ReconstructionPruner):
    """One expert at a time by its reconstruction loss, behind the removals before it (STUN's Eq. 5 and 6).

    With forward passes that is one for each expert and removal; here each expert runs once.
    """

    def search(self, layer: "ExpertSource", losses: "Losses", num_removed: int) -> "tuple[Removed, dict[str, Any]]":
        from stun_exp.expert_pruner.reconstruction.search import greedy

        removed, loss = greedy(losses, num_removed)
        facts: dict[str, Any] = {"loss": loss}
        if not self.progressive:  # else another ratio would give the layer other inputs
            kept = [expert for expert in range(layer.num_experts) if expert not in removed]
            # What goes first at this ratio goes first at a lower one; of those that stay nothing is known.
            facts["ranking"] = asdict(Ranking([*kept, *reversed(removed)], len(kept)))
        return removed, facts
