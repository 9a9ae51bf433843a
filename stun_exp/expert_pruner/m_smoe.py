"""M-SMoE: merge the rarely used experts into those that are routed alike (arXiv 2310.01334).

Shapes: E experts of a layer, in G groups of S that a group-limited router chooses among (one group for others).
"""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class MSMoE(ExpertPruner):
    """The most used experts of the whole model are dominant; every other expert joins one and is averaged into it.

    Usage is an expert's share of its layer's routed tokens, so layers keep different numbers. An expert joins the
    dominant one of its layer with the smallest cosine distance of router logits over all calibration tokens; hidden
    units are matched to the dominant expert's; the average is weighted by tokens. With a group-limited router every
    group has equally many dominant experts, and joins are within the group.

    Published, all router rows stay and several point at one merged expert. Here it has one row, the weighted mean of
    its members' rows, so that stock model code runs the result. The published code keeps one expert a layer at least,
    here it is as many as the router needs.
    """

    ratio: float = Field(ge=0, lt=1)
    """Share of the model's routed experts to merge away."""
    align: bool
    """Whether hidden units are matched before averaging; false averages them as they are numbered."""

    def removed_share(self) -> float:
        return self.ratio

    def has_equal_layers(self) -> bool:
        return False

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        from stun_exp.moe.statistics import ExpertTokens, RouterLogitGram

        return [ExpertTokens(layer.num_experts), RouterLogitGram(layer.num_experts)]

    def examine(self, layer: "ExpertSource", statistics: "list[Statistic]", num_kept: int) -> Any:
        from stun_exp.expert_pruner.merging import cosine_distance
        from stun_exp.expert_pruner.scores import check_finite
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertTokens, RouterLogitGram

        gram_EE = one(RouterLogitGram, statistics).gram_EE
        check_finite(layer, "router logits", gram_EE)
        return layer, one(ExpertTokens, statistics).count_E, cosine_distance(gram_EE), num_kept

    def plan(self, findings: list[Any]) -> Plan:
        import numpy as np

        from stun_exp.expert_pruner.merging import merge, merged
        from stun_exp.expert_pruner.scores import router_groups

        layers, counts, distances, kept = zip(*findings, strict=True)
        plans = []
        dominants = dominant_experts(layers, counts, sum(kept))
        for layer, count_E, distance_EE, dominant in zip(layers, counts, distances, dominants, strict=True):
            clusters = {expert: [expert] for expert in dominant}
            for experts in router_groups(layer):
                beside = [expert for expert in experts if expert in clusters]
                for expert in sorted(set(experts) - set(beside)):
                    nearest = int(np.argmin(distance_EE[expert, beside]))  # the first of equally near ones
                    clusters[beside[nearest]].append(expert)
            plans.append(merge(layer, list(clusters.values()), count_E, aligned=self.align))
        return merged(plans)


def dominant_experts(
    layers: "tuple[ExpertSource, ...]", counts: "tuple[Tensor, ...]", num_kept: int
) -> list[list[int]]:
    """Each layer's dominant experts: the `num_kept` most used of the model, but as many a layer as its router needs.

    Usage is the share of the layer's routed tokens. A group-limited router gets its dominant experts in rounds of one
    for every group, the most used that is left there; a round is as used as its mean. Equal usage goes by layer, then
    by index.
    """
    import numpy as np

    taken: list[list[int]] = [[] for _ in layers]
    optional = []
    for number, (layer, count_E) in enumerate(zip(layers, counts, strict=True)):
        usage_E = count_E.numpy() / count_E.sum().item()
        usage_GS = usage_E.reshape(layer.num_groups, -1)
        ranked_GS = np.argsort(-usage_GS, axis=1, kind="stable")
        rounds_SG = (ranked_GS + np.arange(0, layer.num_experts, usage_GS.shape[1])[:, None]).T
        for place, experts_G in enumerate(rounds_SG):
            if place * layer.num_groups < layer.min_experts:
                taken[number] += experts_G.tolist()
            else:
                optional.append((-float(usage_E[experts_G].mean()), number, place, experts_G.tolist()))
    left = num_kept - sum(map(len, taken))
    for _, number, _, experts in sorted(optional):
        if len(experts) <= left:
            taken[number] += experts
            left -= len(experts)
    return taken
