"""What a look at every tensor of a checkpoint finds: its zeros, and numbers that are not finite."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.layers import MoELayer


@dataclass(frozen=True)
class LayerCensus:
    """The zeros of one layer."""

    matrices: dict[str, int]
    """In each matrix that pruning may touch."""
    others: int
    """In its other parameters."""


@dataclass(frozen=True)
class Census:
    """What a look at every tensor of a checkpoint found."""

    layers: list[LayerCensus]
    outside: int
    """Zeros in parameters outside the layers."""


def census_of(checkpoint: Checkpoint) -> Census:
    """The zeros of a checkpoint, all of whose numbers are finite; reads every tensor.

    ValueError that names a tensor with NaN or infinity in it, in the precision in which the model is worked on.
    """
    layers = [_of_layer(checkpoint, checkpoint.read_layer(index)) for index in range(checkpoint.num_layers)]
    outside = 0
    for name, tensor in checkpoint.read_rest().items():
        _check_finite(checkpoint, name, tensor)
        outside += num_zeros(tensor) if tensor.is_floating_point() else 0
    return Census(layers, outside)


def _of_layer(checkpoint: Checkpoint, layer: MoELayer) -> LayerCensus:
    for name, tensor in layer.module.state_dict().items():
        _check_finite(checkpoint, f"layer {layer.index}'s {name}", tensor)
    matrices = {matrix.name: num_zeros(matrix.weight_OC) for matrix in layer.matrices()}
    everything = sum(num_zeros(parameter) for parameter in layer.module.parameters())
    return LayerCensus(matrices, everything - sum(matrices.values()))


def _check_finite(checkpoint: Checkpoint, name: str, tensor: Tensor) -> None:
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return
    # The lowest and the highest entry of a piece are NaN if any is: one pass, and no mask as large as the tensor.
    if not all(bool(end.isfinite()) for piece in _pieces(tensor) for end in torch.aminmax(piece)):
        kind = str(checkpoint.dtype).removeprefix("torch.")
        raise ValueError(
            f"{checkpoint.path}: {name} holds NaN or infinity (read in {kind}); the checkpoint is damaged, or its "
            "numbers are too large for that precision: download it again, or try model.dtype=float32"
        )


def num_zeros(tensor: Tensor) -> int:
    """How many entries of a tensor are zero."""
    return tensor.numel() - sum(int(torch.count_nonzero(piece)) for piece in _pieces(tensor))


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in pieces along its first dimension, so that what is made of them stays small."""
    yield from tensor.detach() if tensor.ndim > 2 else (tensor.detach(),)
