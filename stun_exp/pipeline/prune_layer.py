"""Which weights of one layer are set to zero: its matrices, what flows into them, and the pruner."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.moe.layers import Matrix
from stun_exp.pipeline.input_statistics import gather, starved_experts
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.streaming.walk import Step
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.unstructured_pruner.protocol import Task, UnstructuredPruner


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one layer."""

    ratio: float
    """Share of the prunable weights that was asked."""
    tokens: list[int]
    """Calibration tokens that each expert received; empty if the pruner needs none."""
    starved: list[int]
    warnings: list[str]


def parts_of(pruner: UnstructuredPruner, matrices: Sequence[Matrix]) -> list[list[Matrix]]:
    """The matrices in the portions whose statistics may be held at the same time; what is no expert's comes last.

    Pruning an expert does not change what its neighbors in the layer receive; pruning attention would.
    """
    experts = sorted({matrix.expert for matrix in matrices if matrix.expert is not None})
    size = pruner.experts_at_once or max(len(experts), 1)
    portions = [set(experts[i : i + size]) for i in range(0, len(experts), size)]
    parts = [[matrix for matrix in matrices if matrix.expert in portion] for portion in portions]
    rest = [matrix for matrix in matrices if matrix.expert is None]
    if not parts or pruner.experts_at_once:
        return [*parts, rest] if rest else parts
    parts[-1] += rest
    return parts


def prune_layer_(stage: WeightStage, step: Step, ratios: LayerRatios) -> PrunedLayer:
    """Prunes one layer in place.

    Starved experts are compared with one another alone: what stands in for their statistics is on another scale.
    """
    matrices = stage.matrices(step.layer)
    sizes = [matrix.weight_OC.numel() for matrix in matrices]
    requested = sum(ratios.of(matrix) * size for matrix, size in zip(matrices, sizes, strict=True)) / max(sum(sizes), 1)
    if not requested:
        return PrunedLayer(0.0, [], [], [])
    warnings: list[str] = []
    tokens: list[int] = []
    starved: list[int] = []
    dense_BTD = None
    visited: set[str] = set()
    for part in parts_of(stage.pruner, matrices):
        statistics, tokens = gather(stage.pruner, step, part, stage.pruner.statistic)
        if dense_BTD is None:
            dense_BTD = step.outputs_BTD  # of the layer as it was: later portions run behind pruned experts
            starved = starved_experts(stage.pruner, tokens)
            ratios = _spared(stage.pruner, step.layer.index, matrices, ratios, starved)
        for are_starved in (False, True):
            compared = [m for m in part if (m.expert in starved) == are_starved]
            tasks = [Task(m.name, m.weight_OC, statistics.get(m.feed), ratios.of(m)) for m in compared]
            warnings += [f"layer {step.layer.index}: {warning}" for warning in stage.pruner.prune_(tasks)]
        visited |= {matrix.name for matrix in part}
    unvisited = {matrix.name for matrix in matrices} - visited
    if unvisited:
        raise ValueError(f"layer {step.layer.index}: {min(unvisited)} is to be pruned, and was not visited")
    if stage.pruner.inputs == "dense":
        step.outputs_BTD = dense_BTD
    else:
        step.changed()
    return PrunedLayer(requested, tokens, starved, warnings)


def _spared(
    pruner: UnstructuredPruner, index: int, matrices: Sequence[Matrix], ratios: LayerRatios, starved: Sequence[int]
) -> LayerRatios:
    """Ratios under which starved experts stay dense, if that is asked, and the rest makes up for it.

    Every other matrix gives the same share of what its own ratio would have left. An N:M pattern cannot give more.
    """
    if pruner.starved != "dense" or not starved:
        return ratios
    lost = sum(ratios.of(m) * m.weight_OC.numel() for m in matrices if m.expert in starved)
    left = sum((1 - ratios.of(m)) * m.weight_OC.numel() for m in matrices if m.expert not in starved)
    if fixed_ratio(pruner.pattern):
        lost = 0.0
    if lost > left:
        raise ValueError(
            f"layer {index}: {len(starved)} starved experts stay dense (unstructured_pruner.starved=dense), and "
            f"the rest, of which {left:.0f} weights would be left, cannot make up for {lost:.0f} more; choose "
            "starved=every_token, lower unstructured_pruner.min_tokens, or raise calibration.num_sequences"
        )
    share = lost / left if lost else 0.0
    experts = {m.expert: ratios.of(m) for m in matrices if m.expert is not None}
    return LayerRatios(
        ratios.rest + (1 - ratios.rest) * share,
        {e: 0.0 if e in starved else ratio + (1 - ratio) * share for e, ratio in experts.items()},
    )


def warnings_of(layers: Sequence[PrunedLayer], pruner: UnstructuredPruner) -> Iterator[str]:
    """What the user should know of how it went."""
    for index, layer in enumerate(layers):
        yield from layer.warnings
        if layer.starved:
            yield (
                f"layer {index}: fewer than unstructured_pruner.min_tokens={pruner.min_tokens} calibration tokens "
                f"reached expert {', '.join(map(str, layer.starved))} (numbered after the expert stage); "
                f"starved={pruner.starved} applies; raise calibration.num_sequences"
            )
