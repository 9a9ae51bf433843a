"""STUN's expert stage: cluster experts that behave alike, keep one representative a cluster (arXiv 2409.06211, 4.2)."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.expert_pruner.stun.finding import Finding
from stun_exp.moe.plan import LayerPlan, Plan, Ranking

if TYPE_CHECKING:
    import numpy as np

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.expert_pruner.stun.cut import Cut
    from stun_exp.moe.observe import Statistic


class STUN(ExpertPruner):
    """Behavioral similarity b_ij = -lambda1 ||W_i - W_j|| + lambda2 a_ij, clustered under one threshold (Eq. 7).

    W_i is expert i's router row, a_ij the number of tokens whose top-k holds both experts, divided by its mean over
    the layer's pairs so that lambda2 does not depend on the amount of calibration text (the official code's
    `divide_mean`). The paper's linkage is complete; the official code checks fewer pairs (`linkage=official`). An
    expert merges only within its group of a group-limited router, and all groups lose equally many.
    """

    ratio: float = Field(ge=0, lt=1)
    """Share of the model's routed experts to remove."""
    lambda1: float = Field(ge=0)
    """Weight of the distance between router rows."""
    lambda2: float = Field(ge=0)
    """Weight of coactivation; 0 needs no calibration data."""
    lambda_weights: float = Field(ge=0)
    """Weight of the distance between the experts' parameters; an ablation, not in the paper."""
    lambda_outputs: float = Field(ge=0)
    """Weight of the distance between the experts' mean outputs over all tokens; an ablation, not in the paper."""
    router_scale: Literal["none", "frobenius"]
    """Router distances as they are (the paper) or over ||W||_F of the layer's router (the code)."""
    coactivation_scale: Literal["mean", "count"]
    """Coactivation over its mean, or as counted; the code has both."""
    linkage: Literal["complete", "average", "single", "official"]
    """When two clusters merge: scipy's linkages, or the official code's rule."""
    budget: Literal["global", "per_layer"]
    """One threshold for the whole model, so that alike layers lose more, or as many experts from each layer."""
    representative: Literal["nearest", "frequent", "reap"]
    """Which member stays: nearest to the cluster's mean, most calibration tokens, or highest REAP score."""
    kappa: int = Field(ge=0)
    """Below it, clusters become their mean instead of a representative; 0 never."""
    kappa_on: Literal["clusters", "size"]
    """Whether kappa counts a layer's clusters (the code) or a cluster's members (a reading of the paper)."""
    threshold: float | None
    """Under it clusters merge, as in the published code; it must keep as many experts as `ratio`, from which it is
    found if it is null."""
    max_removed_per_layer: int | None = Field(ge=1)
    """The most experts that a layer may lose (the code's `top_k`); null for as many as its router can do without."""
    laboratory: bool
    """Whether to gather what clusters.json needs to compare similarities; every expert then runs on every token."""

    def removed_share(self) -> float:
        return self.ratio

    def has_equal_layers(self) -> bool:
        return self.budget == "per_layer"

    @model_validator(mode="after")
    def _some_similarity(self) -> "STUN":
        if not (self.lambda1 or self.lambda2 or self.lambda_weights or self.lambda_outputs):
            raise ValueError(
                "lambda1, lambda2, lambda_weights and lambda_outputs are all 0: all experts would be alike; set one of "
                "them above 0"
            )
        return self

    @model_validator(mode="after")
    def _one_threshold(self) -> "STUN":
        if self.threshold is not None and self.budget == "per_layer":
            raise ValueError(
                f"threshold={self.threshold:g} is one for all layers, and budget=per_layer finds one for each; pass "
                "budget=global, or threshold=null"
            )
        return self

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        from stun_exp.moe.statistics import Coactivation, ExpertActivity, MeanOutputs

        statistics: list[Statistic] = []
        if self.lambda2 or self.laboratory:
            statistics.append(Coactivation(layer.num_experts))
        if self.lambda_outputs or self.laboratory:
            statistics.append(MeanOutputs())
        if self._needs_activity:
            statistics.append(ExpertActivity(layer.num_experts))
        return statistics

    def examine(self, layer: "ExpertSource", statistics: "list[Statistic]", num_kept: int) -> Any:
        from stun_exp.expert_pruner.stun.diagnostics import distances_alone
        from stun_exp.expert_pruner.stun.similarity import weight_distances
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertActivity

        every = range(layer.num_experts)
        wanted = self.lambda_weights or self.laboratory
        weights_EE = weight_distances(layer.expert_weights(every), [layer.num_experts])[0] if wanted else None
        activity = one(ExpertActivity, statistics) if self._needs_activity else None
        alone = distances_alone(layer.router_rows_ED(), statistics, weights_EE) if self.laboratory else {}
        chosen_by_EE = weights_EE if self.lambda_weights else None  # a laboratory moves no choice, not even a tie
        return Finding(layer, num_kept, self._distance(layer, statistics, chosen_by_EE), chosen_by_EE, activity, alone)

    def plan(self, findings: list[Any]) -> Plan:
        """One cluster, one expert. clusters.json says how the clusters came about, distances.npz from what."""
        from stun_exp.expert_pruner.stun.diagnostics import clusters_json, distances_npz

        cuts, warnings = self._cuts(findings)
        plans = [self._layer_plan(found, cut) for found, cut in zip(findings, cuts, strict=True)]
        document, lacking = clusters_json(self.model_dump(), findings, cuts, plans)
        distances = {"distances.npz": distances_npz(findings)}
        return Plan(plans, warnings + lacking, {"clusters.json": document}, distances)

    def num_kept(self, findings: list[Any]) -> dict[int, int]:
        """One expert a cluster, whoever represents it: that may take the experts' weights to say."""
        cuts, _ = self._cuts(findings)
        return {found.layer.index: len(cut.clusters) for found, cut in zip(findings, cuts, strict=True)}

    def _cuts(self, findings: list[Finding]) -> "tuple[list[Cut], list[str]]":
        """Each layer's cut, and what the user should know of how the threshold was found."""
        from stun_exp.expert_pruner.stun.cut import Goal, cut_linkage, cut_official, fewest_clusters

        layers, distances_EE = [found.layer for found in findings], [found.distance_EE for found in findings]
        limit = self.max_removed_per_layer
        kept, least = [found.num_kept for found in findings], [fewest_clusters(layer, limit) for layer in layers]
        goal = Goal(self.ratio, kept, least, self.budget, self.threshold, limit)
        if self.linkage == "official":
            return cut_official(layers, distances_EE, goal)
        return cut_linkage(layers, distances_EE, self.linkage, goal), []

    @property
    def _needs_activity(self) -> bool:
        return self.representative != "nearest" or self.laboratory

    def _distance(
        self, layer: "ExpertSource", statistics: "list[Statistic]", weights_EE: "np.ndarray | None"
    ) -> "np.ndarray":
        """-b_ij and the ablations' terms, (E, E) in fp64, diagonal 0."""
        import numpy as np

        from stun_exp.expert_pruner.stun.similarity import coactivation_similarity, router_distance, row_distance
        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import Coactivation, MeanOutputs

        distance_EE = np.zeros((layer.num_experts, layer.num_experts))
        if self.lambda1:
            distance_EE += self.lambda1 * router_distance(layer.router_rows_ED(), self.router_scale)
        if self.lambda2:
            count_EE = one(Coactivation, statistics).count_EE
            distance_EE -= self.lambda2 * coactivation_similarity(count_EE, self.coactivation_scale)
        if weights_EE is not None:
            distance_EE += self.lambda_weights * weights_EE
        if self.lambda_outputs:
            distance_EE += self.lambda_outputs * row_distance(one(MeanOutputs, statistics).mean_ED())
        return distance_EE

    def _layer_plan(self, found: Finding, cut: "Cut") -> LayerPlan:
        clusters = cut.clusters
        by_survivor = sorted(zip(self._survivors(found, clusters), clusters, strict=True))

        def averaged(cluster: list[int]) -> bool:
            return (len(clusters) if self.kappa_on == "clusters" else len(cluster)) < self.kappa

        groups = [cluster if averaged(cluster) else [survivor] for survivor, cluster in by_survivor]
        kept = [survivor for survivor, _ in by_survivor]
        behind = [cluster for _, cluster in by_survivor]
        facts = self._ranking(found, cut)
        return LayerPlan(found.layer.index, found.layer.num_experts, groups, kept, facts=facts, clusters=behind)

    def _ranking(self, found: Finding, cut: "Cut") -> dict[str, Any]:
        """The order in which experts merge into others, where one cut is part of the next.

        The member nearest to a cluster's mean may be another in each larger cluster, the official rule's merges depend
        on the threshold, and means are no choice of experts.
        """
        if self.representative == "nearest" or self.linkage == "official" or (self.kappa and self.kappa_on == "size"):
            return {}
        ranked = cut.path.survivors_in_order(self._member_scores(found))
        return {"ranking": asdict(Ranking(ranked, max(found.layer.min_experts, self.kappa)))}

    def _survivors(self, found: Finding, clusters: list[list[int]]) -> list[int]:
        from stun_exp.expert_pruner.stun.representative import highest_members, nearest_members

        if self.representative == "nearest":
            return nearest_members(clusters, found.layer, found.weight_distance_EE)
        return highest_members(clusters, self._member_scores(found))

    def _member_scores(self, found: Finding) -> list[float]:
        """How much each member of a cluster is worth standing for it."""
        assert found.activity is not None
        scores_E = found.activity.count_E if self.representative == "frequent" else found.activity.reap_E()
        scores: list[float] = scores_E.tolist()
        return scores
