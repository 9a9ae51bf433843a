"""What a model's weights take, and what formats for zeros would make of them.

Shapes: O rows (outputs) and C columns (inputs) of one matrix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from stun_exp.checkpoint.census import num_zeros
from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.inference.records import StorageFormats
from stun_exp.moe.layers import MoELayer


@dataclass(frozen=True)
class MatrixZeros:
    """The zeros of one matrix that pruning may touch."""

    weights: int
    zeros: int
    two_four: bool
    """Whether every four neighboring inputs of a row have two zeros or more."""


def zeros_of(layer: MoELayer) -> list[MatrixZeros]:
    """The zeros of each of a layer's matrices."""
    weights = [matrix.weight_OC for matrix in layer.matrices()]
    return [MatrixZeros(weight.numel(), num_zeros(weight), is_two_four(weight)) for weight in weights]


def is_two_four(weight_OC: Tensor) -> bool:
    """Whether a matrix has the 2:4 pattern."""
    return weight_OC.shape[1] % 4 == 0 and bool(((weight_OC == 0).reshape(len(weight_OC), -1, 4).sum(-1) >= 2).all())


def bitmask_bytes(matrix: MatrixZeros, itemsize: int) -> float:
    """A bit for each weight, and the weights that are not zero."""
    return matrix.weights / 8 + itemsize * (matrix.weights - matrix.zeros)


def two_four_bytes(matrix: MatrixZeros, itemsize: int) -> float:
    """Two of every four weights, and two bits for the place of each."""
    return matrix.weights / 2 * (itemsize + 2 / 8)


def storage_formats(matrices: Sequence[MatrixZeros], parameters: int, itemsize: int) -> StorageFormats:
    """The bytes of a model of so many parameters, `matrices` among them, in each format."""
    dense = float(itemsize * parameters)
    saved = (max(0.0, itemsize * matrix.weights - bitmask_bytes(matrix, itemsize)) for matrix in matrices)
    fitting = [matrix for matrix in matrices if matrix.two_four]
    halved = (itemsize * matrix.weights - two_four_bytes(matrix, itemsize) for matrix in fitting)
    return StorageFormats(dense, dense - sum(saved), dense - sum(halved), len(matrices), len(fitting))


def fill_zeros_(layer: MoELayer) -> None:
    """Makes every zero of the matrices a number too small to change what the model says."""
    generator = torch.Generator().manual_seed(0)
    for matrix in layer.matrices():
        weight_OC = matrix.weight_OC
        # Small, but no subnormal number, with which some processors compute slowly.
        size = max(1e-6, torch.finfo(weight_OC.dtype).tiny)
        # Of both signs, so that they cancel.
        filling_OC = size * (2.0 * torch.randint(2, weight_OC.shape, generator=generator) - 1)
        weight_OC.copy_(torch.where(weight_OC == 0, filling_OC.to(weight_OC.dtype), weight_OC))


def disk_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the files that the weights are in."""
    return sum(file.stat().st_size for file in set(checkpoint.files.values()))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the memory that a model's weights lie in, shared ones once."""
    storages = {
        (storage := tensor.untyped_storage()).data_ptr(): storage.nbytes()
        for tensor in (*model.parameters(), *model.buffers())
    }
    return sum(storages.values())


def active_parameters(checkpoint: Checkpoint) -> int:
    """The parameters that a token meets."""
    idle = 0
    for layer in checkpoint.outlines:
        if layer.is_moe:
            of_expert = sum(tensor.numel() // layer.num_experts for tensor in layer.expert_tensors().values())
            idle += (layer.num_experts - layer.top_k) * of_expert
    return checkpoint.num_parameters - idle


def cache_bytes(node: object) -> int:
    """Bytes of the tensors in a cache of keys and values."""
    if isinstance(node, Tensor):
        return node.nbytes
    if isinstance(node, Cache | CacheLayerMixin):
        node = vars(node)
    if isinstance(node, dict):
        node = list(node.values())
    return sum(map(cache_bytes, node)) if isinstance(node, list | tuple) else 0
