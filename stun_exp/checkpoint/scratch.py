"""Memory that is a file: the system writes it out when room is short, and reads it in again when it is touched."""

import ctypes
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path

import torch
from torch import Tensor


def mapped(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros in a file of its own, which is gone when the tensor is, however the process ends.

    OSError that names the folder if its disk has no room: found here, and not when the memory is written.
    """
    size = prod(shape)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(size * dtype.itemsize, 1))
        except OSError as error:
            raise OSError(
                f"{folder}: no room for {size * dtype.itemsize / 1e6:,.1f} MB of scratch ({error.strerror}); free some "
                "space or choose another disk with hydra.run.dir=DIR"
            ) from error
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(tuple(shape))


@dataclass(frozen=True)
class Spill:
    """Where tensors of a list go when the list holds more than so many bytes."""

    folder: Path
    above: float

    def keep(self, tensors: list[Tensor], tensor: Tensor) -> None:
        """Appends a tensor to a list: as it is, or a copy in a file, on the CPU."""
        if sum(other.nbytes for other in tensors) + tensor.nbytes > self.above:
            tensor = mapped(self.folder, tensor.shape, tensor.dtype).copy_(tensor)
        tensors.append(tensor)


def give_back() -> None:
    """Gives memory that was freed back to the system, where the C library can: else it grows from layer to layer."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


IN_MEMORY = Spill(Path(), inf)
"""Spills nothing."""
