"""Weights that are zero before the weight stage: what they leave of a budget, and what a run says of them.

A checkpoint that was pruned before has them, one whose parts a structured pruner has made zero, and a format with few
numbers (MXFP4). The weight stage takes them first, as every pruner's criterion puts them last, and they count in its
share. Where it does not go, nobody has pruned them, and they do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.census import Census
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.plan import LayerPlan, Plan
from stun_exp.pipeline.budget import BUDGET_TOLERANCE, Budget, Scope, kinds_in_scope
from stun_exp.pipeline.weight_stage import WeightStage

WORTH_SAYING = 0.0005
"""Share of the weights in scope from which zeros are told of: a random weight of 16 bits is zero now and then."""


@dataclass(frozen=True)
class LayerZeros:
    """One layer's zeros among the weights in scope."""

    in_scope: int
    prunable: dict[int | None, int]
    """Of each expert, and of what belongs to none, in the matrices that the weight stage may prune."""


def layer_zeros(checkpoint: Checkpoint, census: Census, stage: WeightStage) -> list[LayerZeros]:
    """The zeros of each layer, as far as the scope goes."""
    return [
        _of_layer(checkpoint, index, found.matrices, found.others, stage) for index, found in enumerate(census.layers)
    ]


def _of_layer(
    checkpoint: Checkpoint, index: int, matrices: dict[str, int], others: int, stage: WeightStage
) -> LayerZeros:
    layer, kinds = checkpoint.outline(index), kinds_in_scope(stage.scope)
    in_scope = sum(matrices[matrix.name] for matrix in layer.matrices() if matrix.kind in kinds)
    prunable: dict[int | None, int] = {}
    for matrix in stage.prunable(layer):
        prunable[matrix.expert] = prunable.get(matrix.expert, 0) + matrices[matrix.name]
    return LayerZeros(sum(matrices.values()) + others if stage.scope == "model" else in_scope, prunable)


def share_of(zeros: Sequence[LayerZeros], census: Census, in_scope: int, scope: Scope) -> float:
    """The share of the weights in scope that is zero before the weight stage; 0 for what is not worth saying."""
    outside = census.outside if scope == "model" else 0
    share = (sum(layer.in_scope for layer in zeros) + outside) / max(in_scope, 1)
    return share if share >= WORTH_SAYING else 0.0


def check_reachable(zeros: Sequence[LayerZeros], budget: Budget, num_removed: int, share: float) -> None:
    """ValueError if a total is asked that the zeros alone exceed, whichever experts go; reads no weights."""
    if not budget.weights_ratio():
        return
    of_experts = [count for layer in zeros for expert, count in layer.prunable.items() if expert is not None]
    # At the best, those with the most zeros go.
    gone = sum(sorted(of_experts, reverse=True)[:num_removed])
    left = sum(sum(layer.prunable.values()) for layer in zeros) - gone
    _check(budget, left, share, "")


def check_allocated(
    zeros: Sequence[LayerZeros], budget: Budget, plan: Plan, ratios: Sequence[LayerRatios], share: float
) -> None:
    """ValueError, before a weight is pruned, if what each layer is to lose is less than what is zero there."""
    if not budget.weights_ratio():
        return
    if any(own.experts for own in ratios):
        return  # each expert has a share of its own, and what is written is counted
    taken = sum(
        max(own.rest * planned.prunable, _left(layer, plan.of(index)))
        for index, (layer, planned, own) in enumerate(zip(zeros, budget.layers, ratios, strict=True))
    )
    _check(budget, taken, share, "with this allocation ")


def _left(layer: LayerZeros, plan: LayerPlan | None) -> int:
    """A layer's zeros when its experts are planned; a mean of experts has none."""
    if plan is None:
        return sum(layer.prunable.values())
    kept = [group[0] for group in plan.groups if len(group) == 1]
    return layer.prunable.get(None, 0) + sum(layer.prunable.get(expert, 0) for expert in kept)


def _check(budget: Budget, zeros: float, share: float, how: str) -> None:
    least = (budget.removed + zeros) / budget.in_scope
    if least > budget.sparsity + BUDGET_TOLERANCE:
        raise ValueError(
            f"sparsity={budget.sparsity}: {share:.4f} of the weights in scope are zero before the weight stage, and "
            f"with the experts that go the total is {how}at least {least:.4f}; pass sparsity={least + 0.0001:.4f} or "
            "more, or lower expert_pruner.ratio"
        )
