"""The decision of an expert pruner: plain data, written to plan.json and applied by `MoELayer.regroup`."""

from dataclasses import dataclass


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

    def __post_init__(self) -> None:
        members = [expert for group in self.groups for expert in group]
        assert sorted(self.kept) == self.kept
        assert len(set(members)) == len(members)
        assert all(0 <= expert < self.num_experts for expert in members)
        assert all(kept in group for kept, group in zip(self.kept, self.groups, strict=True))


@dataclass(frozen=True)
class Plan:
    """One `LayerPlan` for each layer that has experts."""

    layers: list[LayerPlan]

    def groups(self, layer: int) -> list[list[int]] | None:
        """The groups of one layer; None for a layer without experts."""
        return next((plan.groups for plan in self.layers if plan.layer == layer), None)


def keep(layer: int, num_experts: int, kept: list[int]) -> LayerPlan:
    """The plan that keeps the named experts as they are."""
    return LayerPlan(layer, num_experts, [[expert] for expert in sorted(kept)], sorted(kept))
