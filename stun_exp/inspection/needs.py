"""What a run will need in memory and time: an estimate from sizes, under assumptions that are printed with it."""

import os
from dataclasses import dataclass
from typing import Any

from stun_exp.config.settings import Settings
from stun_exp.inspection.sizes import Inspection
from stun_exp.moe.layers import MoELayer
from stun_exp.moe.observe import chunk_tokens
from stun_exp.pipeline.damage import MAX_TOKENS
from stun_exp.pipeline.weight_stage import WeightStage
from stun_exp.structured_pruner.protocol import StructuredPruner
from stun_exp.unstructured_pruner.protocol import UnstructuredPruner

DISK_RATE = 1e9
"""Bytes a second, read or written."""
CORE_RATE, GPU_RATE = 2.5e10, 1e14
"""Floating point operations a second, of one core and of a GPU: well below their best, since experts get few tokens."""


@dataclass(frozen=True)
class StageNeeds:
    """How often one stage reads or writes the whole model, and how often it runs it on the calibration tokens."""

    moves: int
    passes: float


@dataclass(frozen=True)
class Needs:
    """A run's estimated resources, in bytes, seconds and operations a second."""

    num_tokens: int
    layer_bytes: float
    """Of the layers that are held at once; that is more than the embeddings and the head."""
    hidden_bytes: float
    """Of what flows into a layer and out of it, for all calibration tokens."""
    evaluation_bytes: float
    """Of the whole model, as it is loaded to be evaluated; what is pruned away is not taken off."""
    written_bytes: float
    stages: dict[str, StageNeeds]
    disk_seconds: float
    compute_rate: float
    compute_seconds: float

    @property
    def pruning_bytes(self) -> float:
        return self.layer_bytes + self.hidden_bytes

    @property
    def seconds(self) -> float:
        return self.disk_seconds + self.compute_seconds


def needs_of(found: Inspection, settings: Settings) -> Needs:
    """The needs of a run with these settings; recovery, evaluation and statistics' own memory are left out.

    ValueError if the expert pruner cannot work with this model.
    """
    architecture, model, calibration = found.architecture, settings.model, settings.calibration
    itemsize = architecture.dtype.itemsize
    num_tokens = calibration.num_sequences * calibration.sequence_length
    stages = stages_of(found, settings)
    # A layer as it was read and as it is put together; in 4 bits its own weights are kept beside what they become.
    copies = 3 if model.load == "nf4" else 2
    walks = 2 if settings.expert_pruner.is_progressive() else 1
    layers = walks * copies * found.largest.all.bytes("full", itemsize)
    hidden = walks * 2 * num_tokens * architecture.config.get_text_config().hidden_size * itemsize
    whole = found.whole.bytes("full", itemsize)
    moves = sum(stage.moves for stage in stages.values())
    passes = sum(stage.passes for stage in stages.values())
    operations = 2 * passes * num_tokens * sum(layer.active for layer in found.layers)
    rate = GPU_RATE if model.torch_device().type == "cuda" else CORE_RATE * (os.cpu_count() or 1)
    return Needs(
        num_tokens,
        max(layers, itemsize * found.outside),
        hidden,
        found.whole.bytes(model.load, itemsize),
        found.whole.bytes("full", architecture.written_dtype.itemsize),
        stages,
        moves * (found.disk_bytes or whole) / DISK_RATE,
        rate,
        operations / rate,
    )


def stages_of(found: Inspection, settings: Settings) -> dict[str, StageNeeds]:
    """What each stage of a run does with the model, starved experts left out."""
    pruner: UnstructuredPruner = settings.unstructured_pruner
    feeds = WeightStage(pruner, settings.sparsity_scope).needs_data and pruner.prunes
    measures = settings.allocation.measures and pruner.prunes
    batches = -(-settings.calibration.num_sequences // settings.calibration.batch_size)
    parts = 1
    if pruner.experts_at_once:
        parts += -(-max(layer.num_experts for layer in found.layers) // pruner.experts_at_once)
    layer = next((layer for layer in found.architecture.outlines if layer.is_moe), found.architecture.outline(0))
    removes = settings.measure_damage and settings.expert_pruner.removed_share() > 0
    tokens = settings.calibration.num_sequences * settings.calibration.sequence_length
    skips = layer.is_moe and settings.skipping.statistic(layer) is not None
    return {
        "structure": _structuring(layer, settings.structured_pruner),
        "experts": _choosing(layer, settings.expert_pruner) if layer.is_moe else StageNeeds(0, 0.0),
        # Each layer in full, and what stays of it.
        "damage": StageNeeds(1, 2 * min(MAX_TOKENS / tokens, 1.0)) if removes else StageNeeds(0, 0.0),
        "allocate": StageNeeds(int(measures), float(measures and feeds)),
        # Each layer is run as it was, and once more as it has become: on the first batch alone if none comes after it.
        "prune": StageNeeds(2, parts + (1.0 if pruner.inputs == "pruned" else 1 / batches) if feeds else 0.0),
        "verify": StageNeeds(2, 0.0),
        "skip": StageNeeds(int(skips), float(skips)),
        "evaluate": StageNeeds(1, 0.0),
    }


def _structuring(layer: MoELayer, pruner: StructuredPruner) -> StageNeeds:
    if not pruner.removed_share():
        return StageNeeds(0, 0.0)
    # Once to decide, once to cut; what is cut is written.
    return StageNeeds(3, 1.0 if pruner.statistics(layer) else 0.0)


def _choosing(layer: MoELayer, pruner: Any) -> StageNeeds:
    statistics = pruner.statistics(layer)
    if not statistics:
        return StageNeeds(1, 0.0)
    observed = 1.0 if chunk_tokens(statistics) is None else layer.num_experts / layer.top_k
    # Behind pruned layers: the full model beside it, and each layer again as it has become.
    return StageNeeds(2, observed + 2) if pruner.is_progressive() else StageNeeds(1, observed)
