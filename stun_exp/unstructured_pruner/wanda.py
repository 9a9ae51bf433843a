"""Wanda: weights times the norm of their inputs, compared within each output row (arXiv 2306.11695)."""

from typing import TYPE_CHECKING, ClassVar

from stun_exp.component import Component

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.unstructured_pruner.masks import SquaredNorm
    from stun_exp.unstructured_pruner.protocol import InputStatistic


class Wanda(Component):
    """|W_ij| ||x_j||_2. The published code rounds the count down in every row; here the matrix's total is exact."""

    prunes: ClassVar[bool] = True
    attention: bool

    def statistic(self, num_inputs: int) -> "SquaredNorm":
        from stun_exp.unstructured_pruner.masks import SquaredNorm

        return SquaredNorm(num_inputs)

    def saliency(self, weight_OC: "Tensor", statistic: "InputStatistic | None") -> "Tensor":
        from stun_exp.unstructured_pruner.masks import SquaredNorm

        assert isinstance(statistic, SquaredNorm)
        return weight_OC.abs().float() * statistic.norm_C().to(weight_OC.device)

    def prune_(self, weight_OC: "Tensor", statistic: "InputStatistic | None", sparsity: float) -> None:
        from stun_exp.unstructured_pruner.masks import lowest

        weight_OC.masked_fill_(lowest(self.saliency(weight_OC, statistic), sparsity), 0)
