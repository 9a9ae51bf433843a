"""STUN's expert stage: cluster experts that behave alike, keep one representative a cluster (arXiv 2409.06211, 4.2)."""

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from stun_exp.component import Component
from stun_exp.moe.plan import LayerPlan, Plan

if TYPE_CHECKING:
    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class STUN(Component):
    """Behavioural similarity b_ij = -lambda1 ||W_i - W_j|| + lambda2 a_ij, clustered under one threshold (Eq. 7).

    W_i is expert i's router row, a_ij the number of tokens whose top-k holds both experts, divided by its mean over
    the layer's pairs so that lambda2 does not depend on the amount of calibration text (the official code's
    `divide_mean`). Linkage is complete, as in the paper; the official code checks fewer pairs.
    """

    ratio: float = Field(ge=0, lt=1)
    """Share of the model's routed experts to remove."""
    lambda1: float = Field(ge=0)
    """Weight of the distance between router rows."""
    lambda2: float = Field(ge=0)
    """Weight of coactivation; 0 needs no calibration data."""
    kappa: int = Field(ge=0)
    """A layer with fewer clusters than this keeps cluster means instead of representatives; 0 never does."""

    @model_validator(mode="after")
    def _some_similarity(self) -> "STUN":
        if self.lambda1 == 0 and self.lambda2 == 0:
            raise ValueError("lambda1 and lambda2 are both 0: all experts would be alike; set one of them above 0")
        return self

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        from stun_exp.moe.statistics import Coactivation

        return [Coactivation(layer.num_experts)] if self.lambda2 > 0 else []

    def examine(self, layer: "ExpertSource", statistics: "list[Statistic]", num_kept: int) -> Any:
        from stun_exp.expert_pruner.clustering import distance
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import Coactivation

        coactivation = one(Coactivation, statistics) if self.lambda2 > 0 else None
        return layer, distance(layer.router_rows_ED(), coactivation, self.lambda1, self.lambda2), num_kept

    def plan(self, findings: list[Any]) -> Plan:
        """One cluster, one expert: clusters from `clusters_under_budget`, survivors from `representative`."""
        from stun_exp.expert_pruner.clustering import clusters_under_budget

        layers, distances, kept = zip(*findings, strict=True)
        num_removed = sum(layer.num_experts for layer in layers) - sum(kept)
        clusters = clusters_under_budget(distances, [layer.min_experts for layer in layers], num_removed)
        return Plan([self._layer_plan(layer, groups) for layer, groups in zip(layers, clusters, strict=True)])

    def _layer_plan(self, layer: "ExpertSource", clusters: list[list[int]]) -> LayerPlan:
        import torch

        from stun_exp.expert_pruner.clustering import representative

        merged = [cluster for cluster in clusters if len(cluster) > 1]
        members = [expert for cluster in merged for expert in cluster]
        # All at once: the layer may have to be read from disk for it.
        sizes = [len(cluster) for cluster in merged]
        weights = torch.split(layer.expert_weights(members), sizes) if merged else ()
        survivors = {cluster[0]: cluster[representative(w)] for cluster, w in zip(merged, weights, strict=True)}
        by_survivor = sorted((survivors.get(cluster[0], cluster[0]), cluster) for cluster in clusters)
        kept = [survivor for survivor, _ in by_survivor]
        reconstruct = len(clusters) < self.kappa
        groups = [cluster if reconstruct else [survivor] for survivor, cluster in by_survivor]
        return LayerPlan(layer.index, layer.num_experts, groups, kept)
