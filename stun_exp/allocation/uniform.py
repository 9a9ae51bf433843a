"""The same weight ratio everywhere."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.allocation.protocol import Allotment, Saliencies


class Uniform(Component):
    measures: ClassVar[bool] = False
    per_expert: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    pools_starved: ClassVar[bool] = False

    def measure(self, saliencies: "Saliencies") -> list[float]:
        raise AssertionError("a uniform allocation measures nothing")

    def allocate(self, measured: Sequence[float], sizes: Sequence[int], ratio: float) -> "Allotment":
        from stun_exp.allocation.protocol import Allotment

        return Allotment([ratio] * len(sizes))
