"""What a model is and how large its parts are, from config.json and the index alone."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stun_exp.checkpoint.architecture import Architecture
from stun_exp.checkpoint.dequantize import packing_of
from stun_exp.checkpoint.keys import Keys
from stun_exp.checkpoint.nf4 import BLOCK
from stun_exp.checkpoint.shards import INDEX, find_shards
from stun_exp.moe.layers import Kind, MoELayer
from stun_exp.pipeline.budget import Scope, kinds_in_scope
from stun_exp.utils.files import read_json_object

NF4_BYTES = 0.5 + 4 / BLOCK
"""Of a weight in NF4: half a byte, and its part of the scale that its block shares."""


@dataclass(frozen=True)
class Size:
    """Parameters of a part of the model."""

    parameters: int
    matrices: int
    """Those in matrices that `model.load=nf4` holds in 4 bits; the others stay as they are."""

    def bytes(self, load: str, itemsize: int = 2) -> float:
        """What the part takes in memory, `full` at `itemsize` bytes a parameter, or as `nf4`."""
        packed = self.matrices if load == "nf4" else 0
        return itemsize * (self.parameters - packed) + NF4_BYTES * packed


@dataclass(frozen=True)
class LayerSize:
    """What one decoder layer consists of."""

    num_experts: int
    top_k: int
    num_groups: int
    all: Size
    weights: Mapping[Kind, int]
    """Weights that pruning may touch, by kind."""
    per_expert: int
    """Everything that goes when an expert goes."""

    @property
    def experts(self) -> Size:
        """The routed experts, with their biases and router rows."""
        return Size(self.num_experts * self.per_expert, self.weights["expert"])

    @property
    def active(self) -> int:
        """Parameters that a token meets."""
        return self.all.parameters - (self.num_experts - self.top_k) * self.per_expert


@dataclass(frozen=True)
class Inspection:
    """A model whose index was found to be that of its architecture."""

    architecture: Architecture
    layers: list[LayerSize]
    disk_bytes: int | None
    """None if the index does not say."""
    unused: dict[str, int]
    """Parts that are on disk and not run, by name, and how many tensors they have."""

    @cached_property
    def whole(self) -> Size:
        return Size(self.architecture.num_parameters, sum(layer.all.matrices for layer in self.layers))

    @property
    def outside(self) -> int:
        """Parameters outside the layers: embeddings, norms, head."""
        return self.whole.parameters - sum(layer.all.parameters for layer in self.layers)

    @property
    def moe(self) -> list[LayerSize]:
        return [layer for layer in self.layers if layer.num_experts]

    @property
    def largest(self) -> LayerSize:
        return max(self.layers, key=lambda layer: layer.all.parameters)

    def in_scope(self, scope: Scope) -> int:
        """Parameters that count for `sparsity` under a scope."""
        if scope == "model":
            return self.whole.parameters
        return sum(layer.weights[kind] for layer in self.layers for kind in kinds_in_scope(scope))


def inspect_architecture(architecture: Architecture) -> Inspection:
    """The sizes of a model; if it is at hand, its index is read and checked, and no weights.

    FileNotFoundError for a missing index, ValueError for one that is not the architecture's, and for a quantization
    that is not supported.
    """
    disk_bytes, unused = _checked_index(architecture) if architecture.at_hand else (None, {})
    sizes: dict[Any, LayerSize] = {}
    layers = []
    for layer in architecture.outlines:
        alike = tuple((name, tensor.shape) for name, tensor in layer.module.named_parameters())
        if alike not in sizes:
            sizes[alike] = size_of(layer)
        layers.append(sizes[alike])
    return Inspection(architecture, layers, disk_bytes, unused)


def _checked_index(architecture: Architecture) -> tuple[int | None, dict[str, int]]:
    """The bytes on disk, and the parts that are not run with their numbers of tensors."""
    stored, disk_bytes = read_index(architecture.path)
    keys = Keys(architecture, packing_of(architecture.raw, architecture.path).names(stored))
    keys.check(str(architecture.path))
    return disk_bytes, {part: len(found) for part, found in keys.unused.items()}


def read_index(folder: Path) -> tuple[Collection[str], int | None]:
    """The keys on disk, and the bytes of their tensors if the index says; of a single file the header is read.

    FileNotFoundError without either, ValueError for an index that is none.
    """
    file = folder / INDEX
    if not file.is_file():
        return find_shards(folder).keys(), (folder / "model.safetensors").stat().st_size
    index = read_json_object(file)
    files, about = index.get("weight_map"), index.get("metadata")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{file}: no weight_map; download it again")
    size = about.get("total_size") if isinstance(about, dict) else None
    return files.keys(), size if isinstance(size, int) else None


def size_of(layer: MoELayer) -> LayerSize:
    """What a layer consists of; an outline will do."""
    weights: Counter[Kind] = Counter()
    for matrix in layer.matrices():
        weights[matrix.kind] += matrix.weight_OC.numel()
    parameters = sum(parameter.numel() for parameter in layer.module.parameters())
    return LayerSize(
        layer.num_experts,
        layer.top_k if layer.is_moe else 0,
        layer.num_groups if layer.is_moe else 1,
        Size(parameters, weights.total()),
        weights,
        layer.parameters_per_expert(),
    )
