"""Magnitude pruning: the smallest weights of each matrix go."""

from typing import TYPE_CHECKING, ClassVar

from stun_exp.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.unstructured_pruner.protocol import InputStatistic


class Magnitude(Component):
    """|W|, compared within each matrix."""

    prunes: ClassVar[bool] = True
    attention: bool

    def statistic(self, num_inputs: int) -> "InputStatistic | None":
        return None

    def saliency(self, weight_OC: "Tensor", statistic: "InputStatistic | None") -> "Tensor":
        return weight_OC.abs().float()

    def prune_(self, weight_OC: "Tensor", statistic: "InputStatistic | None", sparsity: float) -> None:
        from stun_exp.unstructured_pruner.masks import lowest

        # One row of all weights: compared within the matrix, ties to the lower index.
        mask = lowest(self.saliency(weight_OC, statistic).reshape(1, -1), sparsity)
        weight_OC.masked_fill_(mask.view_as(weight_OC), 0)
