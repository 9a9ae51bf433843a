"""What the expert stage costs, layer by layer, and how redundant the experts were: measured on the unpruned model.

Nothing is decided by it, so it runs on some of the calibration text alone, and what is pruned does not depend on it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from statistics import mean
from typing import Any

from stun_exp.moe.observe import observe
from stun_exp.moe.plan import LayerPlan, Plan, plan_digest
from stun_exp.moe.redundancy import effective_number, gini, nearest_cosine, nearest_distances, weight_gram
from stun_exp.moe.statistics import DomainUsage, ExpertUsage, OutputError, RoutedOutputs
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.domains import DomainLoad, LayerDomains, domains_of_batches, layer_domains, removed_experts
from stun_exp.pipeline.inputs import Inputs
from stun_exp.state.computed import computed_once
from stun_exp.state.fingerprint import made_by
from stun_exp.streaming.walk import Step

MAX_TOKENS = 16_384
"""Of the calibration text; at least one batch is taken."""
MAX_GATE_MASS = 0.25
"""Of a layer's gates, above which a warning says so."""


@dataclass(frozen=True)
class LayerDamage:
    """What a layer's routed output loses."""

    layer: int
    error_square: float | None
    """||y' - y||^2, where y is the full layer's routed output, and y' that of the experts that stay, on its inputs."""
    reference_square: float | None
    """||y||^2; None, as all that is found, where it is not finite."""
    gate_mass_moved: float | None
    """Share of the chosen experts' gates that went to experts that are gone, or merged into another; None if no token
    came."""


@dataclass(frozen=True)
class LayerRedundancy:
    """How alike a layer's experts are, and how evenly they are used; an expert is compared with the nearest other."""

    layer: int
    num_experts: int
    nearest_router_distance: float | None
    """Of router rows, over their mean length."""
    nearest_weight_cosine: float | None
    nearest_output_cosine: float | None
    """Of mean outputs over an expert's own tokens."""
    effective_experts: float | None
    """exp of the entropy of the experts' load."""
    load_gini: float | None


@dataclass(frozen=True)
class Damage:
    """What was found, on so many tokens."""

    tokens: int
    layers: list[LayerDamage]
    redundancy: list[LayerRedundancy]
    domains: DomainLoad | None = None
    """Of a mixture, what each of its sources used."""


DAMAGE = Stage[Damage | None]("damage", warnings=lambda damage: heavy_losses(damage.layers) if damage else ())


def measure_damage(run: RunContext, inputs: Inputs, plan: Plan) -> Damage | None:
    """What the plan costs; None where it takes no expert, or the settings say not to look. Equal plans share it."""
    if not run.settings.measure_damage or all(_changes_nothing(layer) for layer in plan.layers):
        return None
    key = {**inputs.calibrated_on(run), "domains": inputs.tokens.domains, "plan": plan_digest(plan)}
    key |= made_by(__name__)
    return computed_once(run.store, "damage", key, Damage, run.cost, lambda: _measured(run, inputs, plan))


def damage_json(damage: Damage | None) -> dict[str, Any]:
    """What the report says of all layers together, and of each: reconstruction error is ||y' - y|| / ||y||."""
    if damage is None:
        return {"tokens": None, "reconstruction_error": None, "gate_mass_moved": None, "per_layer": {}}
    moved = [layer.gate_mass_moved for layer in damage.layers if layer.gate_mass_moved is not None]
    return {
        "tokens": damage.tokens,
        "reconstruction_error": _relative_error(damage.layers),
        "gate_mass_moved": mean(moved) if moved else None,
        "per_layer": {
            layer.layer: {"reconstruction_error": _relative_error([layer]), "gate_mass_moved": layer.gate_mass_moved}
            for layer in damage.layers
        },
    }


def redundancy_json(damage: Damage | None) -> dict[str, Any] | None:
    """The means over the layers, and each layer's."""
    if damage is None:
        return None
    layers = [asdict(layer) for layer in damage.redundancy]
    figures = [name for name in layers[0] if name not in ("layer", "num_experts")]
    found = {name: [layer[name] for layer in layers if layer[name] is not None] for name in figures}
    means = {name: mean(values) if values else None for name, values in found.items()}
    return {"tokens": damage.tokens, **means, "per_layer": layers}


def heavy_losses(layers: Iterable[LayerDamage]) -> list[str]:
    """A warning if layers lose much of what their routers give, with the way out."""
    heavy = {one.layer: one.gate_mass_moved for one in layers if (one.gate_mass_moved or 0.0) > MAX_GATE_MASS}
    if not heavy:
        return []
    return [
        f"{_each(heavy)}: the experts that go, or are merged into others, had more than a quarter of the layer's gates "
        "on the calibration text; lower expert_pruner.ratio, or choose experts that are used less "
        "(expert_pruner=reap, frequency)"
    ]


def _each(shares: Mapping[int, float | None]) -> str:
    return ", ".join(f"layer {layer} ({100 * (share or 0):.0f} %)" for layer, share in shares.items())


def _measured(run: RunContext, inputs: Inputs, plan: Plan) -> Damage:
    walk = inputs.walk(run, "damage of the expert stage")
    per_batch = max(inputs.tokens.batches_BT[0].numel(), 1)
    walk.take_batches(max(MAX_TOKENS // per_batch, 1))
    batches = domains_of_batches(inputs.tokens.domains, walk.tokens_BT)
    damage, redundancy, domains = [], [], list[LayerDomains]()
    for step in walk:
        layer_plan = plan.of(step.layer.index)
        if layer_plan is None:
            continue
        usage = ExpertUsage(step.layer.num_experts)
        reference = RoutedOutputs()
        by_domain = DomainUsage(step.layer.num_experts, len(batches.names), batches.numbers)
        with observe(step.layer, [usage, reference, *([by_domain] if batches.names else [])]):
            step.forward()
        domains.append(layer_domains(layer_plan, batches.names, by_domain))
        redundancy.append(_redundancy(step, usage))
        damage.append(_damage(run, inputs, step, layer_plan, usage, reference))
    run.cost.forward_passes += walk.forward_passes
    load = DomainLoad(batches.tokens, domains) if batches.names else None
    return Damage(sum(batch.numel() for batch in walk.tokens_BT), damage, redundancy, load)


def _damage(
    run: RunContext, inputs: Inputs, step: Step, plan: LayerPlan, usage: ExpertUsage, reference: RoutedOutputs
) -> LayerDamage:
    gate_E, gone = usage.gate_E, removed_experts(plan)
    total = float(gate_E.sum())
    moved = float(gate_E[gone].sum()) / total if total else None
    if _changes_nothing(plan):
        norm = sum(float(y_TD.double().square().sum()) for y_TD in reference.outputs_TD)
        return LayerDamage(plan.layer, 0.0, _finite(norm), moved)
    layer = step.layer
    if inputs.checkpoint.scratch is None:
        layer.apply(plan)  # in place of the full one, so that no third layer is in memory; the walk has its outputs
    else:
        layer = inputs.checkpoint.read_planned(plan.layer, plan)
    pruned = step.with_layer(layer)
    error = OutputError(reference)
    with observe(pruned.layer, [error]):
        pruned.forward()
    step.passes += pruned.passes
    return LayerDamage(plan.layer, _finite(error.error_square), _finite(error.reference_square), moved)


def _redundancy(step: Step, usage: ExpertUsage) -> LayerRedundancy:
    layer = step.layer
    outputs_ED = usage.output_ED
    assert outputs_ED is not None, "a layer that ran has outputs"
    mean_ED = outputs_ED / usage.count_E.clamp(min=1)[:, None]
    found = (
        float(nearest_distances(layer.router_rows_ED()).mean()),
        nearest_cosine(weight_gram(layer.expert_weights(range(layer.num_experts)))),
        nearest_cosine(mean_ED @ mean_ED.T),
        effective_number(usage.count_E),
        gini(usage.count_E),
    )
    return LayerRedundancy(layer.index, layer.num_experts, *map(_finite, found))


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def _changes_nothing(plan: LayerPlan) -> bool:
    return plan.kept == list(range(plan.num_experts)) and all(len(group) == 1 for group in plan.groups)


def _relative_error(layers: Iterable[LayerDamage]) -> float | None:
    """The root of the summed squares; None if an output was not finite, or all were zero."""
    error, reference = 0.0, 0.0
    for one in layers:
        if one.error_square is None or one.reference_square is None:
            return None
        error, reference = error + one.error_square, reference + one.reference_square
    return (error / reference) ** 0.5 if reference else None
