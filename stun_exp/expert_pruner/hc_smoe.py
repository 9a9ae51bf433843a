"""HC-SMoE: merge the experts whose mean outputs are alike, by hierarchical clustering (arXiv 2410.08589)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.plan import LayerPlan, Plan

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class HCSMoE(ExpertPruner):
    """Every layer's experts in as many clusters as it keeps, each merged into one, weighted by the tokens routed to it.

    An expert is represented by its mean output over all calibration tokens, routed to it or not, so every expert runs
    on every token. With a group-limited router clusters are within its groups, equally many in each.

    Published, all router rows stay and several point at one merged expert. Here it has one row, the weighted mean of
    its members' rows, so that stock model code runs the result.
    """

    ratio: float = Field(ge=0, lt=1)
    """Share of each layer's routed experts to merge away."""
    linkage: Literal["average", "complete", "single"]
    """Distance of two clusters: the mean, largest or smallest over their pairs; the paper's is `average`."""
    distance: Literal["euclidean", "cosine"]
    """Distance of two mean outputs: HC-SMoE's is `euclidean`, the text of REAP says `cosine` of it."""

    def removed_share(self) -> float:
        return self.ratio

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        from stun_exp.moe.statistics import ExpertTokens, MeanOutputs

        return [ExpertTokens(layer.num_experts), MeanOutputs()]

    def examine(self, layer: "ExpertSource", statistics: "list[Statistic]", num_kept: int) -> LayerPlan:
        from scipy.spatial.distance import pdist, squareform

        from stun_exp.expert_pruner.merging import cosine_distance, merge
        from stun_exp.expert_pruner.scores import check_finite
        from stun_exp.expert_pruner.stun.linkage import merge_path
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertTokens, MeanOutputs

        mean_ED = one(MeanOutputs, statistics).mean_ED()
        check_finite(layer, "mean expert outputs", mean_ED)
        euclidean = self.distance == "euclidean"
        distance_EE = squareform(pdist(mean_ED.numpy())) if euclidean else cosine_distance(mean_ED @ mean_ED.T)
        path = merge_path(distance_EE, self.linkage, layer.num_groups)
        clusters = path.clusters(layer.num_experts - num_kept)
        return merge(layer, clusters, one(ExpertTokens, statistics).count_E, aligned=False)

    def plan(self, findings: list[LayerPlan]) -> Plan:
        from stun_exp.expert_pruner.merging import merged

        return merged(findings)
