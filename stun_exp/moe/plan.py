"""The decision of an expert pruner: plain data, written to plan.json and applied by `MoELayer.apply`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer's experts, in the original numbering.

    `groups[i]` are the experts whose mean becomes expert i of the pruned layer (a group of one is that expert,
    unchanged); `kept[i]` is the expert that represents group i. Both are ordered by `kept`.
    """

    layer: int
    num_experts: int
    groups: list[list[int]]
    kept: list[int]
    weights: list[list[float]] | None = None
    """Share of each member in its group's mean, of sum 1; None for equal shares."""
    aligned: bool = False
    """Whether a member's hidden units are matched to those of the kept expert before the mean is taken."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the method knows of its choice (a loss, say), as JSON; for reading, without effect."""
    clusters: list[list[int]] | None = None
    """The experts that each kept one stands for, where its group may hold fewer of them; for reading, without effect.
    None if the groups are all that there is."""

    def __post_init__(self) -> None:
        members = [expert for group in self.groups for expert in group]
        assert sorted(self.kept) == self.kept
        assert len(set(members)) == len(members)
        assert all(0 <= expert < self.num_experts for expert in members)
        assert all(kept in group for kept, group in zip(self.kept, self.groups, strict=True))
        if self.weights is not None:
            assert [len(group) for group in self.groups] == [len(shares) for shares in self.weights]
            assert all(abs(sum(shares) - 1) < 1e-6 and min(shares) >= 0 for shares in self.weights)
        if self.clusters is not None:
            alike = [expert for cluster in self.clusters for expert in cluster]
            assert len(set(alike)) == len(alike)
            assert all(0 <= expert < self.num_experts for expert in alike)
            assert all(set(group) <= set(c) for group, c in zip(self.groups, self.clusters, strict=True))

    @property
    def ranking(self) -> "Ranking | None":
        """All experts in the order in which the method keeps them; None for one that has no such order."""
        found = self.facts.get("ranking")
        return None if found is None else Ranking(found["experts"], found["fewest"])


@dataclass(frozen=True)
class Ranking:
    """The experts of a layer, the first to keep first: the choice at every ratio, from one calibration."""

    experts: list[int]
    fewest: int
    """The first of them are what the method keeps of the layer if it keeps so many, or more. It does not say which
    fewer it would keep."""


@dataclass(frozen=True)
class Plan:
    """One `LayerPlan` for each layer that has experts."""

    layers: list[LayerPlan]
    warnings: list[str] = field(default_factory=list)
    """What the user should know of how the choice was made."""
    files: dict[str, Any] = field(default_factory=dict)
    """JSON documents that explain the choice, by file name."""
    archives: dict[str, str] = field(default_factory=dict)
    """Other files that do, in base64, by file name: a plan goes through JSON."""

    def of(self, layer: int) -> LayerPlan | None:
        """The plan of one layer; None for a layer without experts."""
        return next((plan for plan in self.layers if plan.layer == layer), None)

    @property
    def num_kept(self) -> dict[int, int]:
        """Experts left in each layer that has any."""
        return {plan.layer: len(plan.groups) for plan in self.layers}


def keep(layer: int, num_experts: int, kept: Sequence[int], facts: dict[str, Any] | None = None) -> LayerPlan:
    """The plan that keeps the named experts as they are."""
    return LayerPlan(layer, num_experts, [[expert] for expert in sorted(kept)], sorted(kept), facts=facts or {})


def plan_digest(plan: Plan) -> str:
    """The sha256 of what the plan does to the model: the same for the same plan, however it came about."""
    layers = [(p.layer, p.num_experts, p.groups, p.kept, p.weights, p.aligned) for p in plan.layers]
    return sha256(json.dumps(layers).encode()).hexdigest()


def plan_id(plan: Plan) -> str:
    """The first 8 digits of a plan's digest, which a reader can tell from another plan's."""
    return plan_digest(plan)[:8]


def router_digest(router_rows_ED: "Tensor") -> str:
    """A layer's fingerprint: the same whether its router was read in 16 or in 32 bits."""
    import torch

    return sha256(router_rows_ED.bfloat16().contiguous().view(torch.uint8).cpu().numpy().tobytes()).hexdigest()[:16]


def plan_json(plan: Plan, routers: Mapping[int, str]) -> dict[str, Any]:
    """The content of plan.json: each layer's plan, and the digest of the router it was made for."""
    return {"layers": [asdict(layer) | {"router": routers[layer.layer]} for layer in plan.layers]}


def retained_experts(plan: Plan, model_type: str) -> dict[str, Any]:
    """A profile for serving runtimes: layer -> ids of the experts to keep, in the original numbering.

    `exact` says whether a runtime that only drops experts gets the same model: not if some were merged.
    """
    return {
        "model_type": model_type,
        "num_experts": {str(layer.layer): layer.num_experts for layer in plan.layers},
        "retained_experts": {str(layer.layer): layer.kept for layer in plan.layers},
        "exact": all(len(group) == 1 for layer in plan.layers for group in layer.groups),
    }
