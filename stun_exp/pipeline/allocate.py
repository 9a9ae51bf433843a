"""The stage between the two: how much the second takes from each layer, or from each expert."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stun_exp.allocation.protocol import Allocation, Saliencies
from stun_exp.allocation.ratios import LayerRatios, Unit, ratios_of_layers
from stun_exp.moe.layers import Matrix
from stun_exp.pipeline.budget import Budget
from stun_exp.pipeline.input_statistics import gather, starved_experts
from stun_exp.pipeline.prune import WeightStage
from stun_exp.streaming.walk import Step, Walk


def layer_ratios(
    stage: WeightStage,
    allocation: Allocation,
    budget: Budget,
    ratio: float,
    walk: Walk,
    warn: Callable[[str], None] = lambda message: None,
) -> list[LayerRatios]:
    """The ratios of each layer; walks the model only if the allocation measures it and there is any to spread."""
    if ratio == 0 or not allocation.measures:
        return [LayerRatios(ratio if layer.prunable else 0.0) for layer in budget.layers]
    units: list[Unit] = []
    measured_layers = set()
    for step in walk:
        matrices = stage.matrices(step.layer)
        # A dense layer has nothing to prune under sparsity_scope=experts, and nothing to measure.
        if not matrices:
            continue
        measured_layers.add(step.layer.index)
        by_unit: dict[int | None, list[Matrix]] = {}
        for matrix in matrices:
            by_unit.setdefault(matrix.expert if allocation.per_expert else None, []).append(matrix)
        measured = allocation.measure(_saliencies(stage, step, matrices, list(by_unit.values()), allocation))
        for (expert, unit), value in zip(by_unit.items(), measured, strict=True):
            units.append(Unit(step.layer.index, expert, sum(matrix.weight_OC.numel() for matrix in unit), value))
    if walk.dense is not None:
        walk.dense.walked(measured_layers)
    allotment = allocation.allocate([unit.measured for unit in units], [unit.size for unit in units], ratio)
    return ratios_of_layers(units, allotment, len(budget.layers), stage.pruner, warn)


def _saliencies(
    stage: WeightStage, step: Step, matrices: Sequence[Matrix], units: list[list[Matrix]], allocation: Allocation
) -> Saliencies:
    """The saliencies of each unit, made afresh at each call; what flows into the matrices is gathered once."""
    statistics, tokens = gather(stage.pruner, step, matrices, stage.pruner.saliency_statistic)
    starved = starved_experts(stage.pruner, tokens)

    def saliency(matrix: Matrix) -> Tensor:
        if allocation.pools_starved and matrix.expert in starved:
            return torch.zeros_like(matrix.weight_OC, dtype=torch.float32)
        return stage.pruner.saliency(matrix.weight_OC, statistics.get(matrix.feed), allocation.per_expert)

    def saliencies(unit: Sequence[Matrix]) -> Callable[[], Iterator[Tensor]]:
        # What stands in for a starved expert's statistic is on another scale: others of its unit speak for it.
        fed = [matrix for matrix in unit if matrix.expert not in starved or allocation.pools_starved] or unit
        return lambda: map(saliency, fed)

    return [saliencies(unit) for unit in units]
