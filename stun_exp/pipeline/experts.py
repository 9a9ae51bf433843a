"""The second stage: which experts go."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import repeat
from typing import Any

from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.expert_pruner.protocol import ExpertPruner, ExpertSource
from stun_exp.moe.observe import Statistic, chunk_tokens, observe
from stun_exp.moe.plan import Plan
from stun_exp.moe.statistics import RoutedOutputs
from stun_exp.pipeline.budget import even_shares, shares_by_layer
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.inputs import Inputs
from stun_exp.state.statistics_cache import StatisticsCache
from stun_exp.streaming.walk import Step, Walk

EXPERTS = Stage("experts", result=Plan, cached=True, warnings=lambda plan: plan.warnings)


def decide_experts(run: RunContext, inputs: Inputs) -> Plan:
    """The plan of the run's expert pruner; an empty one for a dense model."""
    seen, reference = inputs.walk(run, "selecting experts"), inputs.walk(run, "full model")
    cached = StatisticsCache(run.store, inputs.calibrated_on(run), run.cost.charge)
    plan = plan_experts(inputs.checkpoint, run.settings.expert_pruner, seen, reference, cached)
    run.cost.forward_passes += seen.forward_passes + reference.forward_passes
    return plan


class LayerOnDisk:
    """A layer's router and experts, read from disk when asked for (an `ExpertSource`)."""

    def __init__(self, checkpoint: Checkpoint, index: int):
        outline = checkpoint.outline(index)
        self.checkpoint = checkpoint
        self.index = index
        self.num_experts = outline.num_experts
        self.top_k = outline.top_k
        self.num_groups = outline.num_groups
        self.min_experts = outline.min_experts
        self.renormalizes = outline.renormalizes

    def router_rows_ED(self) -> Tensor:
        return self.checkpoint.read_router_rows(self.index)

    def expert_weights(self, experts: Sequence[int]) -> Iterator[Tensor]:
        yield from self.checkpoint.read_layer(self.index, experts).expert_weights(range(len(experts)))


def moe_layers(checkpoint: Checkpoint) -> list[LayerOnDisk]:
    """The layers that have experts."""
    layers = [index for index in range(checkpoint.num_layers) if checkpoint.outline(index).is_moe]
    return [LayerOnDisk(checkpoint, index) for index in layers]


def plan_experts(
    checkpoint: Checkpoint, pruner: ExpertPruner, walk: Walk, reference: Walk, cached: StatisticsCache
) -> Plan:
    """The expert pruner's plan for all layers with experts.

    Walks the model only if the pruner wants data that is not `cached`; a progressive pruner meets each layer behind the
    pruned ones, with what the `reference`, the full model on the same tokens, gives there.
    """
    layers = moe_layers(checkpoint)
    if not layers:
        return Plan([])
    # A replayed plan has its counts already.
    ratio = pruner.removed_share() if pruner.has_ratio() else 0.0
    kept = even_counts(layers, ratio)
    statistics = {layer.index: pruner.statistics(layer) for layer in layers}
    if any(statistics.values()):
        kept_of = {layer.index: (layer, n) for layer, n in zip(layers, kept, strict=True)}
        findings = _findings(pruner, kept_of, statistics, walk, reference, cached)
    else:
        findings = [pruner.examine(layer, [], n) for layer, n in zip(layers, kept, strict=True)]
    plan = pruner.plan(findings)
    warnings = [*missed_ratio(layers, ratio, kept), *plan.warnings, *uneven_losses(plan, layers, pruner)]
    return replace(plan, warnings=warnings)


def _findings(
    pruner: ExpertPruner,
    kept_of: Mapping[int, tuple[LayerOnDisk, int]],
    statistics: dict[int, list[Statistic]],
    walk: Walk,
    reference: Walk,
    cached: StatisticsCache,
) -> list[Any]:
    """What the pruner finds in each layer, with data from the cache or gathered in a walk."""
    findings = []
    progressive = pruner.is_progressive()
    if not progressive and all(cached.holds(index, one) for index, gathered in statistics.items() for one in gathered):
        for index, (layer, num_kept) in kept_of.items():
            gathered = statistics.pop(index)
            _missing(cached, index, gathered)
            findings.append(pruner.examine(layer, gathered, num_kept))
        return findings
    for step, full in zip(walk, reference if progressive else repeat(None), strict=progressive):
        if step.layer.index not in kept_of:
            continue
        layer, num_kept = kept_of[step.layer.index]
        gathered = statistics.pop(layer.index)
        if full is not None:
            outputs_TD = _routed_outputs(full)
            for statistic in gathered:
                statistic.reach(outputs_TD)
        missing = gathered if progressive else _missing(cached, layer.index, gathered)
        passes = 1.0 if chunk_tokens(missing) is None else layer.num_experts / layer.top_k
        # What is gathered behind pruned layers is of no use to another run.
        keeping = nullcontext() if progressive else cached.keeping(layer.index, missing, passes / step.num_layers)
        with keeping, observe(step.layer, missing):
            step.forward(passes)
        finding = pruner.examine(layer, gathered, num_kept)
        findings.append(finding)
        if progressive:
            step.layer.apply(finding)
            step.changed()
    return findings


def _missing(cached: StatisticsCache, layer: int, statistics: Sequence[Statistic]) -> list[Statistic]:
    """Those of a layer's statistics that nobody has gathered yet; the others are filled."""
    spent = [cached.restore_(layer, statistic) for statistic in statistics]
    missing = [statistic for statistic, saved in zip(statistics, spent, strict=True) if saved is None]
    if not missing:  # else the layer is run, and what is cached costs nothing more
        cached.charge(max(filter(None, spent), key=lambda saved: saved.forward_passes))
    return missing


def missed_ratio(layers: Sequence[ExpertSource], ratio: float, kept: Sequence[int]) -> list[str]:
    """A warning if groups that must lose equally many put the asked number of experts out of reach."""
    num_experts = sum(layer.num_experts for layer in layers)
    asked = num_experts - round(ratio * num_experts)
    if sum(kept) == asked:
        return []
    return [
        f"expert_pruner.ratio={ratio:g} would keep {asked} of {num_experts} experts; {sum(kept)} is the nearest number "
        "at which all groups of a group-limited router lose equally many"
    ]


def uneven_losses(plan: Plan, layers: Sequence[ExpertSource], pruner: ExpertPruner) -> list[str]:
    """A warning if the plan takes much more from some layers than from others, and one if a router has no choice left.

    The first is about layers that lose more than twice the mean share; it says what would spread the loss.
    """
    lost = {one.layer: 1 - len(one.groups) / one.num_experts for one in plan.layers}
    share = 1 - sum(plan.num_kept.values()) / sum(one.num_experts for one in plan.layers)
    heavy = [index for index, own in lost.items() if own > 2 * share]
    counts = {one.layer: f"layer {one.layer}: {len(one.groups)} of {one.num_experts}" for one in plan.layers}
    least = [layer.index for layer in layers if lost[layer.index] > 0 and plan.num_kept[layer.index] <= layer.top_k]
    fields = type(pruner).model_fields
    ways = ["expert_pruner.budget=per_layer"] * ("budget" in fields)
    ways += ["expert_pruner.max_removed_per_layer=N"] * ("max_removed_per_layer" in fields)
    ways += ["a lower expert_pruner.ratio"] * pruner.has_ratio()
    way_out = f"; the way out: {', or '.join(ways)}" if ways else ""
    warnings = []
    if heavy:
        warnings.append(
            f"the expert stage is uneven: layers that lose more than twice the mean share of {100 * share:.0f} % keep "
            f"{', '.join(counts[index] for index in heavy)} experts{way_out}"
        )
    if least:
        warnings.append(
            f"routers without a choice: layers keep as many experts as each token takes, or fewer "
            f"({', '.join(counts[index] for index in least)}){way_out}"
        )
    return warnings


def even_counts(layers: Sequence[ExpertSource], ratio: float) -> list[int]:
    """How many experts each layer keeps of an even budget; ValueError if a layer would be left with too few."""
    counts = even_shares(layers, ratio)
    for layer, left in zip(layers, counts, strict=True):
        if left < layer.min_experts:
            raise ValueError(
                f"expert_pruner.ratio={ratio:g} leaves {left} of {layer.num_experts} experts in layer {layer.index}; "
                f"the router needs {layer.min_experts} (top_k={layer.top_k}); lower ratio, which would keep in "
                f"{shares_by_layer(layers, counts)}"
            )
    return counts


def _routed_outputs(step: Step) -> list[Tensor]:
    """What the experts of the full model give for each batch."""
    outputs = RoutedOutputs()
    with observe(step.layer, [outputs]):
        step.forward()
    return outputs.outputs_TD
