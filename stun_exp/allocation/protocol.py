"""What an allocation is: how the second stage's weight ratio is spread over the layers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from torch import Tensor

Saliencies = Callable[[], Iterable[Tensor]]
"""The saliency of each of a layer's matrices, made afresh at each call: together they may be larger than the layer."""


class Allocation(Protocol):
    @property
    def measures(self) -> bool:
        """Whether `measure` needs to see every layer before `allocate`."""
        ...

    def measure(self, saliencies: Saliencies) -> float:
        """What the allocation wants to know of one layer."""
        ...

    def allocate(self, measured: Sequence[float], prunable: Sequence[int], ratio: float) -> list[float]:
        """Weight ratio of each layer; weighted by `prunable` parameters their mean is `ratio`."""
        ...
