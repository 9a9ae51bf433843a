"""What is on disk after a run, against what was asked; and the proof that it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stun_exp.budget import TOLERANCE, Budget, Scope, kinds_in_scope
from stun_exp.disk.checkpoint import Checkpoint
from stun_exp.moe.layers import MoELayer
from stun_exp.stream import Walk
from stun_exp.unstructured_pruner.pattern import fixed_ratio
from stun_exp.weight_stage import PrunedLayer


@dataclass(frozen=True)
class LayerCount:
    """What is on disk of one layer, within the scope."""

    num_experts: int
    zeros: int
    weights: int


def count_written(written: Checkpoint, scope: Scope) -> list[LayerCount]:
    """Zeros and weights of each layer as read back from the written files."""
    return [_count(written.read_layer(index), scope) for index in range(written.num_layers)]


def _count(layer: MoELayer, scope: Scope) -> LayerCount:
    def tensors() -> Iterable[Tensor]:
        if scope == "model":
            yield from layer.module.parameters()
        else:
            yield from (m.weight_OC for m in layer.matrices() if m.kind in kinds_in_scope(scope))

    zeros = sum(int((tensor == 0).sum()) for tensor in tensors())
    return LayerCount(layer.num_experts, zeros, sum(tensor.numel() for tensor in tensors()))


def prove_it_runs(walk: Walk) -> None:
    """Runs the written checkpoint; ValueError naming the first layer whose output is not finite."""
    for step in walk:
        step.forward()
        if not all(bool(torch.isfinite(output).all()) for output in step.outputs_BTD or []):
            raise ValueError(
                f"{walk.checkpoint.path}: layer {step.layer.index} of the pruned model gives NaN or infinity"
            )


def off_target(settings: Any, achieved: float, weights_ratio: float) -> list[str]:
    """Why the total is not the asked one, if a setting makes it so; ValueError if nothing does."""
    pruner, asked = settings.unstructured_pruner, f"sparsity={settings.sparsity}"
    if abs(achieved - settings.sparsity) <= TOLERANCE:
        return []
    if not pruner.prunes:
        return [
            f"unstructured_pruner=none: removing whole experts takes {achieved:.4f} of the weights in scope "
            f"({settings.sparsity_scope}), not {asked}; sparsity_scope=experts counts experts alone"
        ]
    if fixed_ratio(pruner.pattern):
        return [
            f"unstructured_pruner.pattern={pruner.pattern} takes {weights_ratio:.4g} of what the expert stage "
            f"leaves, {achieved:.4f} of the weights in scope in all, not {asked}"
        ]
    if not settings.allocation.exact:
        return [f"this allocation does not keep to the total: {achieved:.4f} of the weights in scope, not {asked}"]
    raise ValueError(f"asked for {asked}, but {achieved:.4f} is on disk")


def measured_sparsity(
    budget: Budget, on_disk: list[LayerCount], pruned: list[PrunedLayer], settings: Any
) -> dict[str, Any]:
    """The report's sparsity: what the written files lack, against what was asked."""
    layers: list[dict[str, Any]] = [
        {
            "layer": index,
            "weights_in_scope": planned.in_scope,
            "removed": planned.in_scope - found.weights,
            "zeros": found.zeros,
            "sparsity": (planned.in_scope - found.weights + found.zeros) / max(planned.in_scope, 1),
            "weights_ratio": layer.ratio,
            "calibration_tokens": layer.tokens,
        }
        for index, (planned, found, layer) in enumerate(zip(budget.layers, on_disk, pruned, strict=True))
    ]
    return {
        "target": settings.sparsity,
        "scope": settings.sparsity_scope,
        "attention": settings.unstructured_pruner.attention and settings.sparsity_scope != "experts",
        "achieved": sum(layer["removed"] + layer["zeros"] for layer in layers) / budget.in_scope,
        "weights_ratio": sum(n.prunable * layer.ratio for n, layer in zip(budget.layers, pruned, strict=True))
        / max(budget.prunable, 1),
        "per_layer": layers,
    }
