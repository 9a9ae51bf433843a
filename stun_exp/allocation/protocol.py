"""What an allocation is: how the second stage's weight ratio is spread over the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Saliencies: TypeAlias = "Sequence[Callable[[], Iterable[Tensor]]]"
"""For each unit of a layer the saliency of its matrices, made afresh at each call: they may be larger than the layer.

A unit is what gets a ratio of its own: the layer, or each of its experts and what is no expert's.
"""


@dataclass(frozen=True)
class Allotment:
    """The ratio of each unit of the model, in [0, 1]."""

    ratios: list[float]
    limited: Mapping[int, str] = field(default_factory=dict)
    """The units that cannot take the ratio meant for them, by their place: the setting, what it asks, what is set."""


class Allocation(Protocol):
    @property
    def measures(self) -> bool:
        """Whether `measure` needs to see every layer before `allocate`."""
        ...

    @property
    def per_expert(self) -> bool:
        """Whether each expert is a unit; their saliencies are then divided by the number of tokens seen."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the mean ratio is the asked one."""
        ...

    @property
    def pools_starved(self) -> bool:
        """Whether starved experts are measured too, with a saliency of zero; else the rest of their unit is."""
        ...

    def measure(self, saliencies: Saliencies) -> list[float]:
        """What the allocation wants to know of each unit of one layer."""
        ...

    def allocate(self, measured: Sequence[float], sizes: Sequence[int], ratio: float) -> Allotment:
        """The ratio of each unit of the model; if `exact`, their mean weighted by `sizes` is `ratio`."""
        ...
