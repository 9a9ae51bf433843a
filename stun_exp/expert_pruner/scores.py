"""The base of the pruners that score every expert by itself and keep the best.

Shapes: E experts of a layer, in G groups of S that a group-limited router chooses among (one group for others).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import Field

from stun_exp.expert_pruner.protocol import ExpertPruner
from stun_exp.moe.plan import LayerPlan, Plan, Ranking, keep

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.expert_pruner.protocol import ExpertSource
    from stun_exp.moe.observe import Statistic


class ExpertScores(ExpertPruner):
    """Keeps the highest-scoring experts of each layer as they are; of equal scores the lower index stays.

    Every layer keeps its share of an even budget, and with a group-limited router so does every group of a layer. An
    expert that no calibration token reached has no score and comes last.
    """

    ratio: float = Field(ge=0, lt=1)
    """Share of each layer's routed experts to remove."""

    def removed_share(self) -> float:
        return self.ratio

    @abstractmethod
    def scores_E(self, layer: "ExpertSource", statistics: "Sequence[Statistic]") -> "Tensor":
        """How much each expert is worth keeping."""

    def statistics(self, layer: "ExpertSource") -> "list[Statistic]":
        from stun_exp.moe.statistics import ExpertActivity

        return [ExpertActivity(layer.num_experts)]

    def examine(self, layer: "ExpertSource", statistics: "list[Statistic]", num_kept: int) -> LayerPlan:
        import torch

        from stun_exp.moe.observe import one
        from stun_exp.moe.statistics import ExpertActivity

        scores_E = self.scores_E(layer, statistics).double().cpu()
        check_finite(layer, "expert scores", scores_E)
        reached_E = one(ExpertActivity, statistics).count_E > 0 if statistics else torch.ones_like(scores_E).bool()
        ranked = _ranked(layer, scores_E.where(reached_E, -torch.inf))
        scores = [s if reached else None for s, reached in zip(scores_E.tolist(), reached_E.tolist(), strict=True)]
        facts = {"scores": scores, "ranking": asdict(Ranking(ranked, layer.min_experts))}
        return keep(layer.index, layer.num_experts, ranked[:num_kept], facts)

    def plan(self, findings: list[LayerPlan]) -> Plan:
        missing = {f.layer: [e for e, score in enumerate(f.facts["scores"]) if score is None] for f in findings}
        return Plan(findings, unreached_warnings(missing, "no score, so it is the first to go"))


def _ranked(layer: "ExpertSource", scores_E: "Tensor") -> list[int]:
    """All experts, the best first; with a group-limited router in rounds of one for every group."""
    scores = scores_E.tolist()

    def worth(expert: int) -> tuple[float, int]:
        return -scores[expert], expert

    by_group = [sorted(group, key=worth) for group in router_groups(layer)]
    rounds = [sorted(experts, key=worth) for experts in zip(*by_group, strict=True)]
    return [expert for experts in rounds for expert in experts]


def router_groups(layer: "ExpertSource") -> list[range]:
    """The neighboring experts among which a group-limited router chooses first; one group for other routers."""
    size = layer.num_experts // layer.num_groups
    return [range(first, first + size) for first in range(0, layer.num_experts, size)]


def unreached_warnings(unreached: dict[int, list[int]], outcome: str) -> list[str]:
    """A line for each layer with experts that no calibration token reached."""
    return [
        f"layer {layer}: no calibration token reached expert {', '.join(map(str, experts))}: {outcome}; "
        "raise calibration.num_sequences"
        for layer, experts in unreached.items()
        if experts
    ]


def check_finite(layer: "ExpertSource", what: str, values: "Tensor") -> None:
    """ValueError, naming the layer, for NaN or infinity, which would be sorted or clustered in silence."""
    if not values.isfinite().all():
        raise ValueError(
            f"layer {layer.index}: {what} of NaN or infinity on the calibration text; the checkpoint is damaged, or "
            "its activations overflow: try model.dtype=float32"
        )
