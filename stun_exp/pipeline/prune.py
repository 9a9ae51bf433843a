"""The stage that prunes weights: what the expert stage left, layer by layer, in one walk for several sparsities."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from stun_exp.allocation.ratios import LayerRatios
from stun_exp.checkpoint.shards import Shard, digests_in
from stun_exp.checkpoint.writer import CheckpointWriter, check_space
from stun_exp.moe.plan import Plan
from stun_exp.pipeline.allocate import Allocated
from stun_exp.pipeline.budget import Budget
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.input_statistics import gathering_settings
from stun_exp.pipeline.layer_diagnostics import LayerDiagnostics, Seen
from stun_exp.pipeline.prune_layer import PrunedLayer, prune_layer_, warnings_of
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.state.artifacts import CHECKPOINT
from stun_exp.state.ownership import remove
from stun_exp.state.statistics_cache import DenseInputs, StatisticsCache
from stun_exp.streaming.walk import Step, Walk, walk_together

if TYPE_CHECKING:
    from stun_exp.pipeline.damage import Damage
    from stun_exp.pipeline.inputs import Inputs
    from stun_exp.pipeline.recover import Recovered


@dataclass(frozen=True)
class FinishedLayer:
    """A layer that is on disk, and what the report will say of it."""

    layer: int
    shard: Shard
    pruned: PrunedLayer
    seen: Seen


PRUNE = Stage("prune", result=FinishedLayer)


@dataclass
class PreparedRun:
    """A run that is ready for the pruning of its weights."""

    run: RunContext
    inputs: "Inputs"
    plan: Plan
    damage: "Damage | None"
    budget: Budget
    ratio: float
    """Share of what the expert stage leaves that the weight stage takes."""
    allocated: Allocated
    found: "EarlierLayers"
    """What an earlier start of the run has left."""
    recovered: "Recovered | None"
    """What an earlier start has trained."""


class Written(NamedTuple):
    """A run's pruned layers, and the checkpoint that they are in."""

    layers: list[PrunedLayer]
    writer: CheckpointWriter
    diagnostics: LayerDiagnostics


@dataclass(frozen=True)
class EarlierLayers:
    """What lies in a checkpoint's folder just as it was recorded: layers, and their shards by number."""

    pruned: dict[int, PrunedLayer]
    seen: dict[int, Seen]
    shards: dict[int, Shard]


def find_layers(run: RunContext, recovered: Mapping[int, Shard] | None) -> EarlierLayers:
    """The layers whose shards are in the folder, bit for bit; warns of those that were, and have to be done again.

    After a recovery all shards are as it left them, `recovered`.
    """
    records = run.journal.find_all(PRUNE.name, run.fingerprint(PRUNE.name), FinishedLayer)
    layers = {record.value.layer: record for record in records}
    if recovered is None:
        on_disk = digests_in(run.out / CHECKPOINT)
        intact = {i: one for i, one in layers.items() if on_disk.get(one.value.shard.name) == one.value.shard.sha256}
        if lost := sorted(layers.keys() - intact.keys()):
            run.warn(
                f"{run.out / CHECKPOINT}: layer {', '.join(map(str, lost))} was finished, but the file is not as it "
                "was written; it is pruned again"
            )
        layers = intact
    for record in layers.values():
        run.charge_earlier(PRUNE.name, record.cost)
    return EarlierLayers(
        {layer: record.value.pruned for layer, record in layers.items()},
        {layer: record.value.seen for layer, record in layers.items()},
        dict(recovered) if recovered is not None else {layer: one.value.shard for layer, one in layers.items()},
    )


def clear_folder(run: RunContext, inputs: "Inputs", found: EarlierLayers) -> None:
    """Removes what an earlier start has begun and not finished; OSError if the disk has no room for the rest."""
    kept = {f"{CHECKPOINT}/{shard.name}" for shard in found.shards.values()}
    remove(run.out, run.own_in(CHECKPOINT), keep=kept)
    check_space(inputs.checkpoint, run.out, found.shards)


def prune_together(ready: Sequence[PreparedRun]) -> list[Written]:
    """The pruned layers of each run, all in one walk: their weights are read once. Each layer is journaled."""
    with ExitStack() as stack:
        costs = [stack.enter_context(prepared.run.at_work(PRUNE.name)) for prepared in ready]
        start = time.perf_counter()
        works = [_pruning(prepared) for prepared in ready]
        pruned = prune_layers([pruning for pruning, _ in works])
        elapsed = time.perf_counter() - start
        for prepared, cost, (pruning, _), (layers, own_seconds) in zip(ready, costs, works, pruned, strict=True):
            cost.leave_out(elapsed - own_seconds)  # it was spent on the other runs
            cost.forward_passes += pruning.walk.forward_passes
            for warning in warnings_of(layers, prepared.run.settings.unstructured_pruner):
                prepared.run.warn(warning)
    return [
        Written(layers, pruning.writer, diagnostics)
        for (pruning, diagnostics), (layers, _) in zip(works, pruned, strict=True)
    ]


def _pruning(prepared: PreparedRun) -> "tuple[Pruning, LayerDiagnostics]":
    """What is to be done for one run in the walk, and what looks at it."""
    run, inputs, found = prepared.run, prepared.inputs, prepared.found
    pruner, stage, plan = run.settings.unstructured_pruner, inputs.stage, prepared.plan
    walk = inputs.walk(run, "pruning", plan, stage.needs_data and prepared.ratio > 0)
    one_batch = None
    if pruner.inputs == "dense":
        cached = StatisticsCache(run.store, inputs.calibrated_on(run), run.cost.charge)
        one_batch, walk.dense = 1, DenseInputs(cached, plan, gathering_settings(pruner, stage.scope, pruner.statistic))
        if walk.dense.complete:  # the first batch goes along, for the reconstruction error
            walk.take_batches(one_batch)
    diagnostics = LayerDiagnostics(stage.prunable, found.seen, one_batch)
    walk.edit = diagnostics.before(plan, inputs.checkpoint.read_layer)

    def record(step: Step, pruned: PrunedLayer, shard: Shard) -> None:
        index, passes = step.layer.index, step.passes / inputs.checkpoint.num_layers
        run.record(PRUNE.name, FinishedLayer(index, shard, pruned, diagnostics.of(index)), passes)

    writer = CheckpointWriter(inputs.checkpoint, run.out / CHECKPOINT, found.shards)
    work = Pruning(stage, prepared.allocated.layers, walk, writer, diagnostics.watch, found.pruned, record)
    return work, diagnostics


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
                pruned[layer.index] = prune_layer_(self.stage, step, self.ratios[layer.index])
            self.done(step, pruned[layer.index], self.writer.write_layer(layer))
        elif self.walk.runs and self.stage.pruner.inputs == "pruned":
            self.writer.restore_(layer)


class PrunedLayers(NamedTuple):
    """What became of each layer, and the seconds that it took, those of other prunings left out."""

    layers: list[PrunedLayer]
    seconds: float


def prune_layers(prunings: Sequence[Pruning]) -> list[PrunedLayers]:
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
        PrunedLayers([pruned[index] for index in sorted(pruned)], own)
        for pruned, own in zip(layers, seconds, strict=True)
    ]
