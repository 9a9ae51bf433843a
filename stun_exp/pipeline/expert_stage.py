"""What the report says of the expert stage: which plan it is, its clusters, and what it costs."""

from collections.abc import Mapping
from typing import Any

from stun_exp.moe.plan import LayerPlan, Plan, plan_id


def expert_stage_json(plan: Plan, damage: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The block of report.json; None where no experts went.

    Args:
        plan: Of the expert stage.
        damage: What was measured of all layers together, and of each in `per_layer`, by its number.
    """
    if sum(plan.num_kept.values()) == sum(layer.num_experts for layer in plan.layers):
        return None
    sizes = {layer.layer: cluster_sizes(layer) for layer in plan.layers}
    whole = dict(damage or {})
    of_layers = whole.pop("per_layer", {})
    return {
        "plan_id": plan_id(plan),
        "num_clusters": sum(map(len, sizes.values())),
        "largest_cluster": max(map(max, sizes.values())),
        **whole,
        "per_layer": [
            {
                "layer": layer.layer,
                "num_experts": layer.num_experts,
                "kept": len(layer.kept),
                "cluster_sizes": sizes[layer.layer],
                **of_layers.get(layer.layer, {}),
            }
            for layer in plan.layers
        ],
    }


def cluster_sizes(layer: LayerPlan) -> list[int]:
    """How many experts each kept one stands for, in falling order: itself alone, if a method only drops the others."""
    return sorted(map(len, layer.clusters or layer.groups), reverse=True)
