"""The stage between the two prunings: how much the second takes from each layer, or from each expert."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from stun_exp.allocation.protocol import Allocation, Saliencies
from stun_exp.allocation.ratios import LayerRatios, Unit, ratios_of_layers
from stun_exp.moe.layers import Matrix
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.budget import Budget, weights_ratio
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.input_statistics import gather, settings_of, starved_experts
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.source_zeros import check_allocated
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.state.statistics_cache import DenseInputs, StatisticsCache
from stun_exp.streaming.walk import Step, Walk
from stun_exp.unstructured_pruner.pattern import fixed_ratio


@dataclass(frozen=True)
class Allocated:
    """What the allocation gave each layer, and what it had to say."""

    layers: list[LayerRatios]
    warnings: list[str]


ALLOCATE = Stage("allocate", result=Allocated, warnings=lambda allocated: allocated.warnings)


def allocate(run: RunContext, inputs: Inputs, plan: Plan, budget: Budget, ratio: float) -> Allocated:
    """The share of each layer, as the run's allocation spreads the `ratio` of the weight stage."""
    pruner, stage, warnings = run.settings.unstructured_pruner, inputs.stage, list[str]()
    cached = StatisticsCache(run.store, inputs.calibrated_on(run), run.cost.charge)
    dense = DenseInputs(cached, plan, settings_of(pruner, stage.scope, pruner.saliency_statistic))
    walk = inputs.walk(run, "allocating", plan, stage.needs_data and not dense.complete, dense=dense)
    ratios = layer_ratios(stage, run.settings.allocation, budget, ratio, walk, warnings.append)
    run.cost.forward_passes += walk.forward_passes
    return Allocated(ratios, warnings)


def check_allocation(run: RunContext, inputs: Inputs, plan: Plan, budget: Budget, allocated: Allocated) -> None:
    """ValueError if the source has more zeros than a layer is to lose; warns of an allocation without effect."""
    pruner, allocation = run.settings.unstructured_pruner, run.settings.allocation
    if weights_ratio(budget, pruner) == 0 and allocation.measures:
        run.warn("the allocation has no effect: the weight stage has nothing to prune")
    if allocation.exact and not fixed_ratio(pruner.pattern) and pruner.prunes:
        check_allocated(inputs.zeros, budget, plan, allocated.layers, inputs.source_zeros)


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

    def saliencies(unit: Sequence[Matrix]) -> Callable[[], Iterator[Tensor]]:
        # What stands in for a starved expert's statistic is on another scale: others of its unit speak for it.
        fed = [matrix for matrix in unit if matrix.expert not in starved] or unit
        return lambda: (
            stage.pruner.saliency(matrix.weight_OC, statistics.get(matrix.feed), allocation.per_expert)
            for matrix in fed
        )

    return [saliencies(unit) for unit in units]
