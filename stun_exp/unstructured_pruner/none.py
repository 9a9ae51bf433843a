"""Keep all weights."""

from typing import TYPE_CHECKING, ClassVar

from stun_exp.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.unstructured_pruner.protocol import InputStatistic


class KeepAllWeights(Component):
    """Sets nothing to zero."""

    prunes: ClassVar[bool] = False
    attention: ClassVar[bool] = False

    def statistic(self, num_inputs: int) -> "InputStatistic | None":
        return None

    def saliency(self, weight_OC: "Tensor", statistic: "InputStatistic | None") -> "Tensor":
        return weight_OC.abs().float()

    def prune_(self, weight_OC: "Tensor", statistic: "InputStatistic | None", sparsity: float) -> None:
        assert sparsity == 0
