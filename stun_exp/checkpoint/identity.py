"""What tells one checkpoint from another: its content, and what a look at every tensor of it has found."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from stun_exp.checkpoint.checkpoint import Checkpoint
from stun_exp.moe.layers import MoELayer
from stun_exp.state.cache import Store
from stun_exp.state.code import made_by
from stun_exp.utils.files import digest_of

Digest = Callable[[Path], str]
"""The sha256 of a file's bytes."""
SETTLED = 2.0
"""Seconds that a file must have been left alone for its digest to be remembered: clocks of some disks tick that slowly,
and what is written within a tick of the first look would look the same at the second."""


@dataclass
class Digests:
    """The sha256 of files, each read once for as long as it is what it was.

    All bytes count: names, sizes and times are the same for two models that were copied with their times. To read them
    takes as long as to read the file, so what they came to is kept under the file's path, size, times and inode, which
    no way of writing to a file, or of putting another in its place, leaves as they are.
    """

    store: Store
    _known: dict[Path, str] = field(default_factory=dict)

    def of(self, file: Path) -> str:
        if file not in self._known:
            self._known[file] = self._looked_up(file)
        return self._known[file]

    def _looked_up(self, file: Path) -> str:
        key = _as_it_lies(file)
        found = self.store.find("digests", key)
        if isinstance(found, str):
            return found
        digest = digest_of(file)
        if digest is None:
            raise FileNotFoundError(f"{file}: was there and is gone; start the run again")
        if _as_it_lies(file) == key and time.time_ns() - max(key["mtime"], key["ctime"]) > SETTLED * 1e9:
            self.store.add("digests", key, digest)
        return digest


def _as_it_lies(file: Path) -> dict[str, Any]:
    about = file.stat()
    return {
        "path": str(file.resolve()),
        "size": about.st_size,
        "mtime": about.st_mtime_ns,
        "ctime": about.st_ctime_ns,
        "inode": about.st_ino,
    }


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


def census_of(checkpoint: Checkpoint, identity: Mapping[str, str], store: Store) -> Census:
    """The zeros of a checkpoint of this `identity`, all of whose numbers are finite; counted once for all runs.

    ValueError that names a tensor with NaN or infinity in it, in the precision in which the model is worked on.
    """
    key = {"checkpoint": identity, "dtype": str(checkpoint.dtype), **made_by("stun_exp.checkpoint.identity")}
    found = store.find("censuses", key)
    if found is None:
        found = asdict(_taken(checkpoint))
        store.add("censuses", key, found)
    return TypeAdapter(Census).validate_python(found)


def _taken(checkpoint: Checkpoint) -> Census:
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
