"""The second stage: which weights of what the expert stage left are set to zero, layer by layer."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.budget import Scope, kinds_in_scope
from stun_exp.disk.shards import Shard
from stun_exp.disk.writer import CheckpointWriter
from stun_exp.known import Saved, made_as
from stun_exp.moe.inputs import InputStatistics, SharedInputs
from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.moe.observe import Statistic, observe
from stun_exp.moe.statistics import ExpertTokens
from stun_exp.stream import Step, Walk
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.unstructured_pruner.protocol import InputStatistic, Task, UnstructuredPruner


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

    def gathers(self, statistic: InputStatistic | None) -> dict[str, Any]:
        """All on which it depends what is gathered of a model; `statistic` is an empty one."""
        pruner = self.pruner
        return {
            "scope": self.scope,
            "attention": pruner.attention,
            "min_tokens": pruner.min_tokens,
            "starved": pruner.starved,
            "gathered": statistic and made_as(statistic),
        }

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

    def starved(self, tokens: Sequence[int]) -> list[int]:
        """Experts that fewer tokens reached than the pruner wants."""
        return [expert for expert, count in enumerate(tokens) if count < self.pruner.min_tokens]

    def observe(
        self, step: Step, matrices: Sequence[Matrix], make: Callable[[int], InputStatistic | None] | None = None
    ) -> tuple[dict[str, InputStatistic], list[int]]:
        """The statistic of each feed, those of starved experts replaced, and the tokens each expert received.

        Runs the layer, again if experts are starved; not at all if weights alone decide. ValueError that names the
        feed whose inputs are not finite.
        """
        if not self.needs_data:
            return {}, []
        layer = step.layer
        # It needs data, so there is a statistic.
        statistic_of = cast(Callable[[int], InputStatistic], make or self.pruner.statistic)
        if step.dense is None or not matrices:
            return self._gather(step, matrices, statistic_of)
        widths = {matrix.feed: matrix.weight_OC.shape[1] for matrix in matrices}
        empty = {feed: statistic_of(width) for feed, width in widths.items()}
        known = step.dense.find(layer.index, empty)
        if known is None:
            start, before = time.perf_counter(), step.passes
            known = self._gather(step, matrices, statistic_of)
            spent = Saved(time.perf_counter() - start, (step.passes - before) / step.num_layers)
            step.dense.keep(layer.index, empty, *known, spent)
        elif step.hidden_BTD and step.outputs_BTD is None:
            step.forward()
        return known

    def _gather(
        self, step: Step, matrices: Sequence[Matrix], statistic_of: Callable[[int], InputStatistic]
    ) -> tuple[dict[str, InputStatistic], list[int]]:
        layer = step.layer
        inputs = InputStatistics(layer, matrices, statistic_of)
        tokens = ExpertTokens(layer.num_experts)
        self._run(step, [inputs, tokens])
        for matrix in matrices:
            if matrix.expert is None and not inputs.by_feed[matrix.feed].num_tokens:
                raise ValueError(
                    f"layer {layer.index}: no calibration token was seen on its way into {matrix.name}; its family "
                    f"({layer.family.model_type}) uses the weight by itself and must name it in `gates`"
                )
        counts: list[int] = tokens.count_E.tolist()
        statistics = inputs.by_feed | self._instead(step, matrices, self.starved(counts), statistic_of)
        for feed, statistic in statistics.items():
            if not statistic.is_finite():
                raise ValueError(
                    f"layer {layer.index}: NaN or infinity flows into {feed} on the calibration text; the checkpoint "
                    "is damaged, or its activations overflow: try model.dtype=float32"
                )
        return statistics, counts

    def _instead(
        self,
        step: Step,
        matrices: Sequence[Matrix],
        starved: Sequence[int],
        statistic_of: Callable[[int], InputStatistic],
    ) -> dict[str, InputStatistic]:
        """What takes the place of the starved experts' statistics, by feed."""
        hungry = [matrix for matrix in matrices if matrix.expert in starved]
        if not hungry:
            return {}
        if self.pruner.starved == "every_token":
            experts = {matrix.expert for matrix in hungry if matrix.expert is not None}
            everywhere = InputStatistics(step.layer, hungry, statistic_of, experts)
            self._run(step, [everywhere], 1 + len(experts) / step.layer.top_k)
            return everywhere.by_feed
        if self.pruner.starved == "shared":
            shared = SharedInputs(step.layer, hungry, statistic_of)
            self._run(step, [shared])
            return shared.by_feed
        return {matrix.feed: statistic_of(matrix.weight_OC.shape[1]) for matrix in hungry}

    def _run(self, step: Step, statistics: Sequence[Statistic], passes: float = 1.0) -> None:
        with observe(step.layer, statistics):
            step.forward(passes)

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
            statistics, tokens = self.observe(step, part)
            if dense_BTD is None:
                dense_BTD = step.outputs_BTD  # of the layer as it was: later portions run behind pruned experts
                starved = self.starved(tokens)
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


def prune_layers(
    stage: WeightStage,
    ratios: Sequence[LayerRatios],
    walk: Walk,
    writer: CheckpointWriter,
    watch: Callable[[Step], AbstractContextManager[object]] = nullcontext,
    finished: Mapping[int, PrunedLayer] = MappingProxyType({}),
    done: Callable[[Step, PrunedLayer, Shard], None] = lambda step, pruned, shard: None,
) -> list[PrunedLayer]:
    """Prunes and writes layer after layer, each in a block that `watch` makes for it, and says so to `done`.

    What is `finished` was written earlier. It is run as it is on disk where what comes after it wants its outputs, and
    not pruned again.
    """
    pruned = dict(finished)
    prunable = set()
    missing = [index for index in range(len(ratios)) if index not in finished]
    for step in walk if missing else ():
        layer = step.layer
        if stage.prunable(layer):
            prunable.add(layer.index)
        if layer.index in missing:
            with watch(step):
                pruned[layer.index] = stage.prune_(step, ratios[layer.index])
            done(step, pruned[layer.index], writer.write_layer(layer))
        elif walk.runs and stage.pruner.inputs == "pruned":
            writer.restore_(layer)
    if walk.dense is not None:
        walk.dense.walked(prunable)
    writer.finish()
    return [pruned[index] for index in range(len(ratios))]
