"""What is on disk after a run, against what was asked; and the proof that it runs."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stun_exp.checkpoint.census import num_zeros
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.checkpoint.writer import CheckpointWriter
from stun_exp.config.settings import Settings
from stun_exp.moe.layers import MoELayer
from stun_exp.pipeline.budget import BUDGET_TOLERANCE, Budget, kinds_in_scope
from stun_exp.pipeline.context import RunContext, Stage
from stun_exp.pipeline.inputs import Inputs
from stun_exp.pipeline.prune import Written
from stun_exp.pipeline.prune_layer import PrunedLayer
from stun_exp.pipeline.source_zeros import LayerZeros
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.state.artifacts import CHECKPOINT
from stun_exp.streaming.walk import Walk
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.utils.files import digest_of


@dataclass(frozen=True)
class WrittenCheckpoint:
    """The pruned checkpoint as read back from disk, and what was measured of it."""

    checkpoint: Checkpoint
    writer: CheckpointWriter
    sparsity: dict[str, Any]
    """The report's part of that name."""

    def digest(self, file: Path) -> str:
        """The sha256 of a file of it; a shard's is known from when it was written."""
        own = {shard.name: shard.sha256 for shard in self.writer.shards.values()}
        return own.get(file.name) or str(digest_of(file))

    def identity(self) -> dict[str, str]:
        """The sha256 of every file that it is made of."""
        return self.checkpoint.identity(self.digest)


VERIFY: Stage[WrittenCheckpoint] = Stage("verify", artifacts=lambda written: {"sparsity.json": written.sparsity})


def verify(run: RunContext, inputs: Inputs, budget: Budget, written: Written) -> WrittenCheckpoint:
    """The written checkpoint, counted and run; ValueError if it is not what was asked for, or does not run."""
    settings, tokens = run.settings, inputs.tokens
    checkpoint = settings.model.written(run.out / CHECKPOINT, settings.stream.scratch(run.out))
    pruned = {index for index, layer in enumerate(written.layers) if layer.ratio}
    counts = count_written(checkpoint, inputs.stage, pruned)
    sparsity = measured_sparsity(budget, counts, written.layers, settings, inputs.zeros, inputs.source_zeros)
    prove_it_runs(Walk(checkpoint, tokens.batches_BT[:1], run.device, "reloading", targets_BT=tokens.targets_BT[:1]))
    for warning in off_target(settings, sparsity["achieved"], sparsity["weights_ratio"], inputs.source_zeros):
        run.warn(warning)
    return WrittenCheckpoint(checkpoint, written.writer, sparsity)


@dataclass(frozen=True)
class LayerCount:
    """What is on disk of one layer, within the scope."""

    num_experts: int
    zeros: int
    """In the matrices that the weight stage pruned."""
    other_zeros: int
    """In what it left as it was: nobody has pruned them."""
    weights: int


def count_written(written: Checkpoint, stage: WeightStage, pruned: Collection[int]) -> list[LayerCount]:
    """Zeros and weights of each layer as read back from the written files; the weight stage has `pruned` some."""
    return [_count(written.read_layer(index), stage, index in pruned) for index in range(written.num_layers)]


def _count(layer: MoELayer, stage: WeightStage, was_pruned: bool) -> LayerCount:
    def tensors() -> Iterable[Tensor]:
        if stage.scope == "model":
            yield from layer.module.parameters()
        else:
            yield from (m.weight_OC for m in layer.matrices() if m.kind in kinds_in_scope(stage.scope))

    everything = sum(map(num_zeros, tensors()))
    zeros = sum(num_zeros(matrix.weight_OC) for matrix in stage.prunable(layer)) if was_pruned else 0
    return LayerCount(layer.num_experts, zeros, everything - zeros, sum(tensor.numel() for tensor in tensors()))


def prove_it_runs(walk: Walk) -> None:
    """Runs the written checkpoint; ValueError naming the first layer whose output is not finite."""
    for step in walk:
        step.forward()
        if not all(bool(torch.isfinite(output).all()) for output in step.outputs_BTD or []):
            raise ValueError(
                f"{walk.checkpoint.path}: layer {step.layer.index} of the pruned model gives NaN or infinity"
            )


def off_target(settings: Settings, achieved: float, weights_ratio: float, source_zeros: float) -> list[str]:
    """Why the total is not the asked one, if a setting or the source makes it so; ValueError if nothing does.

    `source_zeros` is the share of the weights in scope that was zero before.
    """
    pruner, target = settings.unstructured_pruner, settings.sparsity
    assert not isinstance(target, tuple), "each sparsity is a run of its own"
    requested = f"sparsity={target}"
    if abs(achieved - target) <= BUDGET_TOLERANCE:
        return []
    if not pruner.prunes:
        return [
            f"unstructured_pruner=none: removing whole experts takes {achieved:.4f} of the weights in scope "
            f"({settings.sparsity_scope}), not {requested}; sparsity_scope=experts counts experts alone"
        ]
    if fixed_ratio(pruner.pattern):
        return [
            f"unstructured_pruner.pattern={pruner.pattern} takes {weights_ratio:.4g} of what the expert stage "
            f"leaves, {achieved:.4f} of the weights in scope in all, not {requested}"
        ]
    if not settings.allocation.exact:
        return [f"this allocation does not keep to the total: {achieved:.4f} of the weights in scope, not {requested}"]
    if 0 < achieved - target <= source_zeros:
        return [
            f"{achieved:.4f} of the weights in scope are gone, not {requested}: {source_zeros:.4f} were zero before, "
            "and in some rows more than the weight stage would take"
        ]
    raise ValueError(f"asked for {requested}, but {achieved:.4f} is on disk")


def measured_sparsity(
    budget: Budget,
    on_disk: list[LayerCount],
    pruned: list[PrunedLayer],
    settings: Settings,
    before: Sequence[LayerZeros],
    source_zeros: float,
) -> dict[str, Any]:
    """The report's sparsity: what the written files lack, against what was asked.

    Apart from that, what was zero `before` in the source, and what is zero where the weight stage has not been.
    """
    layers: list[dict[str, Any]] = [
        {
            "layer": index,
            "weights_in_scope": planned.in_scope,
            "removed": planned.in_scope - found.weights,
            "zeros": found.zeros,
            "other_zeros": found.other_zeros,
            "source_zeros": zeros.in_scope,
            "sparsity": (planned.in_scope - found.weights + found.zeros) / max(planned.in_scope, 1),
            "weights_ratio": layer.ratio,
            "calibration_tokens": layer.tokens,
        }
        for index, (planned, found, layer, zeros) in enumerate(zip(budget.layers, on_disk, pruned, before, strict=True))
    ]
    return {
        "target": settings.sparsity,
        "scope": settings.sparsity_scope,
        "attention": settings.unstructured_pruner.attention and settings.sparsity_scope != "experts",
        "restructured": budget.restructured,
        "achieved": (budget.restructured + sum(layer["removed"] + layer["zeros"] for layer in layers))
        / budget.in_scope,
        "source_zeros": source_zeros,
        "weights_ratio": sum(n.prunable * layer.ratio for n, layer in zip(budget.layers, pruned, strict=True))
        / max(budget.prunable, 1),
        "per_layer": layers,
    }
