"""The second stage: which weights of what the expert stage left are set to zero, layer by layer."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.shards import Shard
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.pipeline.budget import Scope, kinds_in_scope
from stun_exp.pipeline.input_statistics import gather, starved_experts
from stun_exp.streaming.walk import Step, Walk, walk_together
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


@dataclass(frozen=True)
class WeightStage:
    """Which matrices the second stage touches, and with what."""

    pruner: UnstructuredPruner
    scope: Scope

    @property
    def needs_data(self) -> bool:
        """Whether the pruner looks at inputs, and not at weights alone."""
        return self.pruner.statistic(1) is not None

    def prunable(self, layer: MoELayer) -> list[Matrix]:
        """All matrices that may be pruned."""
        kinds = kinds_in_scope(self.scope)
        if not self.pruner.attention:
            kinds = kinds - {"attention"}
        return [matrix for matrix in layer.matrices() if matrix.kind in kinds]

    def matrices(self, layer: MoELayer) -> list[Matrix]:
        """All that may be pruned; ValueError that names one with NaN or infinity in it."""
        matrices = self.prunable(layer)
        for matrix in matrices:
            if not matrix.weight_OC.isfinite().all():
                raise ValueError(f"layer {layer.index}: {matrix.name} holds NaN or infinity; the checkpoint is damaged")
        return matrices

    def parts(self, matrices: Sequence[Matrix]) -> list[list[Matrix]]:
        """The matrices in the portions whose statistics may be held at the same time; what is no expert's comes last.

        Pruning an expert does not change what its neighbours in the layer receive; pruning attention would.
        """
        experts = sorted({matrix.expert for matrix in matrices if matrix.expert is not None})
        size = self.pruner.experts_at_once or max(len(experts), 1)
        portions = [set(experts[i : i + size]) for i in range(0, len(experts), size)]
        parts = [[matrix for matrix in matrices if matrix.expert in portion] for portion in portions]
        rest = [matrix for matrix in matrices if matrix.expert is None]
        if not parts or self.pruner.experts_at_once:
            return [*parts, rest] if rest else parts
        parts[-1] += rest
        return parts

    def prune_(self, step: Step, ratios: LayerRatios) -> PrunedLayer:
        """Prunes one layer in place.

        Starved experts are compared with one another alone: what stands in for their statistics is on another scale.
        """
        matrices = self.matrices(step.layer)
        sizes = [matrix.weight_OC.numel() for matrix in matrices]
        asked = sum(ratios.of(matrix) * size for matrix, size in zip(matrices, sizes, strict=True)) / max(sum(sizes), 1)
        if not asked:
            return PrunedLayer(0.0, [], [], [])
        warnings: list[str] = []
        tokens: list[int] = []
        starved: list[int] = []
        dense_BTD = None
        visited: set[str] = set()
        for part in self.parts(matrices):
            statistics, tokens = gather(self.pruner, step, part, self.pruner.statistic)
            if dense_BTD is None:
                dense_BTD = step.outputs_BTD  # of the layer as it was: later portions run behind pruned experts
                starved = starved_experts(self.pruner, tokens)
                ratios = self._spared(step.layer.index, matrices, ratios, starved)
            for hungry in (False, True):
                compared = [m for m in part if (m.expert in starved) == hungry]
                tasks = [Task(m.name, m.weight_OC, statistics.get(m.feed), ratios.of(m)) for m in compared]
                warnings += [f"layer {step.layer.index}: {warning}" for warning in self.pruner.prune_(tasks)]
            visited |= {matrix.name for matrix in part}
        unvisited = {matrix.name for matrix in matrices} - visited
        if unvisited:
            raise ValueError(f"layer {step.layer.index}: {min(unvisited)} is to be pruned, and was not visited")
        if self.pruner.inputs == "dense":
            step.outputs_BTD = dense_BTD
        else:
            step.changed()
        return PrunedLayer(asked, tokens, starved, warnings)

    def _spared(
        self, index: int, matrices: Sequence[Matrix], ratios: LayerRatios, starved: Sequence[int]
    ) -> LayerRatios:
        """Ratios under which starved experts stay dense, if that is asked, and the rest makes up for it.

        Every other matrix gives the same share of what its own ratio would have left. An N:M pattern cannot give more.
        """
        if self.pruner.starved != "dense" or not starved:
            return ratios
        lost = sum(ratios.of(m) * m.weight_OC.numel() for m in matrices if m.expert in starved)
        left = sum((1 - ratios.of(m)) * m.weight_OC.numel() for m in matrices if m.expert not in starved)
        if fixed_ratio(self.pruner.pattern):
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


@dataclass(frozen=True)
class Pruning:
    """One walk's second stage: how much of each layer goes, and where the result is written.

    Each layer is pruned in a block that `watch` makes for it, and `done` is told of it when it is on disk. What is
    `finished` was written earlier. It is run as it is on disk where what comes after it wants its outputs, and not
    pruned again.
    """

    stage: WeightStage
    ratios: Sequence[LayerRatios]
    walk: Walk
    writer: CheckpointWriter
    watch: Callable[[Step], AbstractContextManager[None]] = lambda step: nullcontext()
    finished: Mapping[int, PrunedLayer] = field(default_factory=dict)
    done: Callable[[Step, PrunedLayer, Shard], None] = lambda step, pruned, shard: None

    def is_finished(self) -> bool:
        return len(self.finished) == len(self.ratios)

    def prune(self, step: Step, pruned: dict[int, PrunedLayer]) -> None:
        """Prunes and writes one layer, if that has not been done, and adds it to the `pruned`."""
        layer = step.layer
        if layer.index not in self.finished:
            with self.watch(step):
                pruned[layer.index] = self.stage.prune_(step, self.ratios[layer.index])
            self.done(step, pruned[layer.index], self.writer.write_layer(layer))
        elif self.walk.runs and self.stage.pruner.inputs == "pruned":
            self.writer.restore_(layer)


class Pruned(NamedTuple):
    """What became of each layer, and the seconds that it took, those of other prunings left out."""

    layers: list[PrunedLayer]
    seconds: float


def prune_layers(prunings: Sequence[Pruning]) -> list[Pruned]:
    """Each pruning's layers; prunings of one checkpoint under one plan go through it together."""
    layers = [dict(pruning.finished) for pruning in prunings]
    seconds = [0.0] * len(prunings)
    going = [place for place, pruning in enumerate(prunings) if not pruning.is_finished()]
    prunable = set()
    start = time.perf_counter()
    for number, step in walk_together([prunings[place].walk for place in going]) if going else ():
        pruning, place = prunings[going[number]], going[number]
        if pruning.stage.prunable(step.layer):
            prunable.add(step.layer.index)
        pruning.prune(step, layers[place])
        # With what was done since the last one's turn: the walk to here, and the reading of the layer for the first.
        now = time.perf_counter()
        seconds[place] += now - start
        start = now
    for pruning in prunings:
        if pruning.walk.dense is not None:
            pruning.walk.dense.walked(prunable)
        pruning.writer.finish()
    return [
        Pruned([pruned[index] for index in sorted(pruned)], own) for pruned, own in zip(layers, seconds, strict=True)
    ]
