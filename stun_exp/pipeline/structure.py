"""The first stage of a dense model: which of its parts go, and the model without them for the stages after it."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from stun_exp.checkpoint.census import census_of
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.restructured import RestructuredWriter, restructured_config
from stun_exp.checkpoint.shards import digests_in
from stun_exp.moe.coupled import LayerCut, cut_, sizes_of
from stun_exp.pipeline.budget import weights_in_scope
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.cuts import decide_cuts
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.parts import LayerParts, Structure
from stun_exp.pipeline.preflight import files_of
from stun_exp.pipeline.source_zeros import layer_zeros, share_of
from stun_exp.state.artifacts import SHOTS, STRUCTURED
from stun_exp.state.costs import StageCost
from stun_exp.state.ownership import remove

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
    census, scope = census_of(checkpoint), inputs.stage.scope
    zeros = layer_zeros(checkpoint, census, inputs.stage)
    share = share_of(zeros, census, weights_in_scope(checkpoint, scope), scope)
    identity = checkpoint.identity(lambda file: found.shards.get(file.name) or run.digests.of(file))
    return replace(inputs, checkpoint=checkpoint, identity=identity, zeros=zeros, source_zeros=share, structure=found)


def weights_taken(run: RunContext, inputs: Inputs) -> int:
    """Weights in scope that the structured pruner has taken."""
    scope = run.settings.sparsity_scope
    return weights_in_scope(inputs.unpruned, scope) - weights_in_scope(inputs.checkpoint, scope)


def structure(run: RunContext, inputs: Inputs) -> Structure:
    """Decides what stays, and writes the model of it into the run's folder.

    Each of several shots works on the model that the last one has left: of these one is kept at a time, in 32 bits. An
    interrupted run begins again with the shot that it was at.
    """
    number = run.settings.structured_pruner.num_shots()
    found = _last_shot(run)
    for shot in range(_done(found), number):
        _remove_shots(run, but=shot)
        start, passes = time.perf_counter(), run.cost.forward_passes
        found = _shot(run, inputs, shot, found)
        if shot + 1 < number:
            seconds = time.perf_counter() - start
            cost = StageCost(seconds, seconds, forward_passes=run.cost.forward_passes - passes)
            run.journal.add("shot", run.fingerprint(STRUCTURE.name), found, cost)
    _remove_shots(run)
    assert found is not None, "there is one shot at least"
    return found


def _shot(run: RunContext, inputs: Inputs, shot: int, last: Structure | None) -> Structure:
    """What the next shot leaves, after the `last` of `shot` that were."""
    source, whole = _source(run, inputs, shot), weights_in_scope(inputs.checkpoint, "decoder")
    asked = run.settings.structured_pruner
    pruner = asked.after(shot, 1 - weights_in_scope(source, "decoder") / whole)
    cuts, statistics, loss = decide_cuts(run, replace(inputs, checkpoint=source), pruner)
    is_last = shot + 1 == asked.num_shots()
    folder = STRUCTURED if is_last else _folder(shot + 1)
    dtype = inputs.checkpoint.written_dtype if is_last else torch.float32
    writer = RestructuredWriter(source, run.out / folder, restructured_config(source, cuts.layers, dtype))
    run.journal.claim([f"{folder}/{name}" for name in writer.names()])
    for cut, seen in zip(cuts.layers, statistics, strict=True):
        if cut.dropped:
            continue
        layer = source.read_layer(cut.layer)
        if seen:
            layer.module.to(run.device)
            pruner.adjust_(layer, cut, seen)
        cut_(layer, cut)
        writer.write_layer(layer)
    writer.finish()
    removed = whole - weights_in_scope(writer.target, "decoder")
    log.info("structured pruner: %d of %d weights go", removed, whole)
    facts = dict(cuts.facts)
    if loss is not None:
        earlier = last.facts["shots"] if last else []
        facts["shots"] = [*earlier, {"loss_before": loss, "weights_removed": removed, **cuts.facts}]
    return Structure(
        _parts(inputs.checkpoint, source, cuts.layers),
        removed,
        {shard.name: shard.sha256 for shard in writer.shards},
        facts,
        [*(last.warnings if last else ()), *cuts.warnings],
    )


def _folder(shot: int) -> str:
    """Where the model lies that so many shots have left."""
    return f"{SHOTS}/{shot}"


def _source(run: RunContext, inputs: Inputs, shot: int) -> Checkpoint:
    """The model that the next shot works on."""
    if not run.settings.structured_pruner.needs_gradients():
        return inputs.checkpoint
    path = run.out / _folder(shot) if shot else inputs.checkpoint.path
    return Checkpoint(path, torch.float32, run.settings.stream.scratch(run.out))


def _done(found: Structure | None) -> int:
    """How many shots are."""
    return len(found.facts["shots"]) if found else 0


def _last_shot(run: RunContext) -> Structure | None:
    """What the last shot of an earlier start has left, if it lies there as it was written."""
    records = run.journal.find_all("shot", run.fingerprint(STRUCTURE.name), Structure)
    for record in records:
        run.cost.add(record.cost)
    if not records:
        return None
    found = records[-1].value
    folder = run.out / _folder(_done(found))
    on_disk = digests_in(folder) if folder.is_dir() else {}
    return found if all(on_disk.get(name) == digest for name, digest in found.shards.items()) else None


def _remove_shots(run: RunContext, but: int | None = None) -> None:
    """Removes what shots have left, but for what one has."""
    own = [name for name in run.journal.own if name.startswith(f"{SHOTS}/")]
    remove(run.out, own, keep=[name for name in own if but and name.startswith(f"{_folder(but)}/")])


def _parts(unpruned: Checkpoint, source: Checkpoint, cuts: Sequence[LayerCut]) -> list[LayerParts]:
    """What each layer had, and what it has when the cuts are made in what earlier shots have left of it."""
    parts = []
    for cut in cuts:
        sizes, left = sizes_of(unpruned.outline(cut.layer)), sizes_of(source.outline(cut.layer))
        units = 0 if cut.dropped else left.units if cut.units is None else len(cut.units)
        groups = 0 if cut.dropped else left.groups if cut.groups is None else len(cut.groups)
        parts.append(LayerParts(cut.layer, cut.dropped, (sizes.units, units), (sizes.groups, groups)))
    return parts
