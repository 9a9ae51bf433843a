"""The first stage of a dense model: which of its parts go, and the model without them, which the other stages work on."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from stun_exp.checkpoint.census import census_of
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.restructured import RestructuredWriter, restructured_config
from stun_exp.checkpoint.shards import digests_in
from stun_exp.moe.coupled import LayerCut, cut_, sizes_of
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.observe import observe
from stun_exp.pipeline.budget import weights_in_scope
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.diagnostics import Weights, weights_of
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.source_zeros import layer_zeros
from stun_exp.state.artifacts import STRUCTURED
from stun_exp.structured_pruner.protocol import Cuts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerParts:
    """What a layer had and what it has."""

    layer: int
    dropped: bool
    units: tuple[int, int]
    """Hidden units of its feed-forward, before and after."""
    groups: tuple[int, int]
    """Groups of attention heads, before and after; none where heads do not go by themselves."""


@dataclass(frozen=True)
class Structure:
    """What the structured pruner took from a model."""

    layers: list[LayerParts]
    weights_removed: int
    """Weights of the decoder's matrices."""
    shards: dict[str, str]
    """The sha256 of the files that the model is kept in for the rest of the run."""
    kurtosis: dict[str, float | None]
    """Of the weights in the layers' matrices, before and after."""
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """The report's part of that name."""
        found = asdict(self)
        return {key: found[key] for key in ("weights_removed", "layers", "kurtosis", "facts")}


STRUCTURE: Stage[Structure] = Stage("structure", result=Structure, warnings=lambda found: found.warnings)


def restructure(run: RunContext, inputs: Inputs) -> Inputs:
    """The inputs with the model that the structured pruner leaves in the place of the unpruned one."""
    if not run.settings.structured_pruner.removed_share():
        return inputs
    found = run.stage(STRUCTURE, structure, inputs)
    folder = run.out / STRUCTURED
    on_disk = digests_in(folder) if folder.is_dir() else {}
    if any(on_disk.get(name) != digest for name, digest in found.shards.items()):
        run.warn(f"{folder}: is not as it was written; it is made again")
        with run.at_work(STRUCTURE.name):
            found = structure(run, inputs)
    checkpoint = run.settings.model.written(folder, run.settings.stream.scratch(run.out))
    zeros = layer_zeros(checkpoint, census_of(checkpoint), inputs.stage)
    identity = checkpoint.identity(lambda file: found.shards.get(file.name) or run.digests.of(file))
    return replace(inputs, checkpoint=checkpoint, identity=identity, zeros=zeros, structure=found)


def weights_taken(run: RunContext, inputs: Inputs) -> int:
    """Weights in scope that the structured pruner has taken."""
    scope = run.settings.sparsity_scope
    return weights_in_scope(inputs.unpruned, scope) - weights_in_scope(inputs.checkpoint, scope)


def structure(run: RunContext, inputs: Inputs) -> Structure:
    """Decides what stays, and writes the model of it into the run's folder."""
    checkpoint = inputs.checkpoint
    cuts, before = _decide(run, inputs)
    writer = RestructuredWriter(checkpoint, run.out / STRUCTURED, restructured_config(checkpoint, cuts.layers))
    run.journal.claim([f"{STRUCTURED}/{name}" for name in writer.names()])
    after = Weights()
    for cut in cuts.layers:
        if cut.dropped:
            continue
        layer = checkpoint.read_layer(cut.layer)
        cut_(layer, cut)
        after += _weights(layer)
        writer.write_layer(layer)
    writer.finish()
    removed = weights_in_scope(checkpoint, "decoder") - weights_in_scope(writer.target, "decoder")
    log.info("structured pruner: %d of %d weights go", removed, weights_in_scope(checkpoint, "decoder"))
    return Structure(
        _parts(checkpoint, cuts.layers),
        removed,
        {shard.name: shard.sha256 for shard in writer.shards},
        {"before": before.kurtosis()["all"], "after": after.kurtosis()["all"]},
        cuts.facts,
        list(cuts.warnings),
    )


def _decide(run: RunContext, inputs: Inputs) -> tuple[Cuts, Weights]:
    """What stays, and the weights of the unpruned model."""
    pruner, checkpoint = run.settings.structured_pruner, inputs.checkpoint
    needs_data = any(pruner.statistics(layer) for layer in checkpoint.outlines[:1])
    walk = inputs.walk(run, "selecting parts", runs=needs_data)
    findings, weights = [], Weights()
    for step in walk:
        statistics = pruner.statistics(step.layer)
        if needs_data:
            with observe(step.layer, statistics):
                step.forward()
        findings.append(pruner.examine(step.layer, statistics))
        weights += _weights(step.layer)
    run.cost.forward_passes += walk.forward_passes
    return pruner.plan(findings), weights


def _weights(layer: MoELayer) -> Weights:
    found = Weights()
    for matrix in layer.matrices():
        found += weights_of(matrix.weight_OC)
    return found


def _parts(checkpoint: Checkpoint, cuts: Sequence[LayerCut]) -> list[LayerParts]:
    parts = []
    for cut in cuts:
        sizes = sizes_of(checkpoint.outline(cut.layer))
        units = 0 if cut.dropped else sizes.units if cut.units is None else len(cut.units)
        groups = 0 if cut.dropped else sizes.groups if cut.groups is None else len(cut.groups)
        parts.append(LayerParts(cut.layer, cut.dropped, (sizes.units, units), (sizes.groups, groups)))
    return parts
