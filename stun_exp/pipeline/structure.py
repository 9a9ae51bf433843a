"""The first stage of a dense model: which of its parts go, and the model without them for the stages after it."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from stun_exp.checkpoint.census import census_of
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.restructured import RestructuredWriter, restructured_config
from stun_exp.checkpoint.shards import digests_in
from stun_exp.moe.coupled import LayerCut, cut_, sizes_of
from stun_exp.moe.observe import observe
from stun_exp.pipeline.budget import weights_in_scope
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.parts import LayerParts, Structure
from stun_exp.pipeline.preflight import files_of
from stun_exp.pipeline.source_zeros import layer_zeros
from stun_exp.state.artifacts import STRUCTURED
from stun_exp.structured_pruner.protocol import Cuts

log = logging.getLogger(__name__)


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
    run.journal.claim(files_of(checkpoint))  # of fewer layers, shards have other names
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
    cuts = _decide(run, inputs)
    writer = RestructuredWriter(checkpoint, run.out / STRUCTURED, restructured_config(checkpoint, cuts.layers))
    run.journal.claim([f"{STRUCTURED}/{name}" for name in writer.names()])
    for cut in cuts.layers:
        if cut.dropped:
            continue
        layer = checkpoint.read_layer(cut.layer)
        cut_(layer, cut)
        writer.write_layer(layer)
    writer.finish()
    removed = weights_in_scope(checkpoint, "decoder") - weights_in_scope(writer.target, "decoder")
    log.info("structured pruner: %d of %d weights go", removed, weights_in_scope(checkpoint, "decoder"))
    return Structure(
        _parts(checkpoint, cuts.layers),
        removed,
        {shard.name: shard.sha256 for shard in writer.shards},
        cuts.facts,
        list(cuts.warnings),
    )


def _decide(run: RunContext, inputs: Inputs) -> Cuts:
    """What stays of the unpruned model."""
    pruner, checkpoint = run.settings.structured_pruner, inputs.checkpoint
    needs_data = any(pruner.statistics(layer) for layer in checkpoint.outlines[:1])
    walk = inputs.walk(run, "selecting parts", runs=needs_data)
    findings = []
    for step in walk:
        statistics = pruner.statistics(step.layer)
        if needs_data:
            with observe(step.layer, statistics):
                step.forward()
        findings.append(pruner.examine(step.layer, statistics))
    run.cost.forward_passes += walk.forward_passes
    return pruner.plan(findings)


def _parts(checkpoint: Checkpoint, cuts: Sequence[LayerCut]) -> list[LayerParts]:
    parts = []
    for cut in cuts:
        sizes = sizes_of(checkpoint.outline(cut.layer))
        units = 0 if cut.dropped else sizes.units if cut.units is None else len(cut.units)
        groups = 0 if cut.dropped else sizes.groups if cut.groups is None else len(cut.groups)
        parts.append(LayerParts(cut.layer, cut.dropped, (sizes.units, units), (sizes.groups, groups)))
    return parts
