"""Remove the expert whose removal hurts least, and again: the O(n) variant of STUN's ablation (arXiv 2409.06211)."""

from typing import TYPE_CHECKING, Any

from stun_exp.expert_pruner.reconstruction.pruner import ReconstructionPruner

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.expert_pruner.reconstruction.search import Losses, Removed


class GreedyReconstruction(ReconstructionPruner):
    """One expert at a time by its reconstruction loss, behind the removals before it (STUN's Eq. 5 and 6).

    With forward passes that is one for each expert and removal; here each expert runs once.
    """

    def search(self, layer: "ExpertSource", losses: "Losses", num_removed: int) -> "tuple[Removed, dict[str, Any]]":
        from stun_exp.expert_pruner.reconstruction.search import beam

        removed, loss = beam(losses, num_removed, width=1)
        return removed, {"loss": loss}
