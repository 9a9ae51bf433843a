"""The same weight ratio in every layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from stun_exp.component import Component

if TYPE_CHECKING:
    from stun_exp.allocation.protocol import Saliencies


class Uniform(Component):
    measures: ClassVar[bool] = False

    def measure(self, saliencies: "Saliencies") -> float:
        raise AssertionError("a uniform allocation measures nothing")

    def allocate(self, measured: Sequence[float], prunable: Sequence[int], ratio: float) -> list[float]:
        return [ratio] * len(prunable)
