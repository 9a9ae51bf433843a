"""What the pruners that search by reconstruction loss share (Lu et al., arXiv 2402.14800)."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.plan import LayerPlan, Plan, keep

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.expert_pruner.reconstruction.search import Losses, Removed
    from stun_exp.moe.observe import Statistic


class ReconstructionPruner(ExpertPruner):
    """Keeps in each layer the experts with which its routed output changes least; how to search is the subclass's.

    The loss is the sum over calibration batches of the Frobenius norm of the change, as in the authors' code, so it
    depends on `calibration.batch_size`. Every expert runs once on every token, which counts as num_experts / top_k
    forward passes. The change is that of the routed experts' output; shared experts add the same to both sides.
    """

    ratio: float = Field(ge=0, lt=1)
    """Share of each layer's routed experts to remove."""
    progressive: bool
    """Whether a layer's inputs come through the layers pruned before it, while its target stays the full model's."""
    chunk_tokens: int = Field(ge=1)
    """Tokens at once: bounds the memory for expert outputs and Gram matrices."""

    def removed_share(self) -> float:
        return self.ratio

    def is_progressive(self) -> bool:
        return self.progressive

    def search(self, layer: "ExpertSource", losses: "Losses", num_removed: int) -> "tuple[Removed, dict[str, Any]]":
        """The experts to remove, and what there is to say of them; the loss is added."""
        raise AssertionError("a search defines this")

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        from stun_exp.expert_pruner.reconstruction.token_grams import TokenGrams

        if layer.num_groups > 1:
            raise ValueError(
                f"layer {layer.index}: the router chooses among {layer.num_groups} groups of experts first, which a "
                "reconstruction search does not know; choose another expert pruner, such as expert_pruner=reap"
            )
        most = min(int(self.ratio * layer.num_experts) + 1, layer.num_experts - layer.min_experts)
        return [TokenGrams(layer.num_experts, layer.top_k, most, layer.renormalizes, self.chunk_tokens)]

    def examine(self, layer: "ExpertSource", statistics: "list[Statistic]", num_kept: int) -> LayerPlan:
        from stun_exp.expert_pruner.reconstruction.search import Losses
        from stun_exp.expert_pruner.reconstruction.token_grams import TokenGrams
        from stun_exp.moe.observe import one

        grams = one(TokenGrams, statistics)
        losses = Losses(grams, layer.num_experts)
        removed, facts = self.search(layer, losses, layer.num_experts - num_kept)
        grams.close()
        kept = [expert for expert in range(layer.num_experts) if expert not in removed]
        return keep(layer.index, layer.num_experts, kept, facts | {"losses_computed": losses.evaluated})

    def plan(self, findings: list[LayerPlan]) -> Plan:
        return Plan(findings)
