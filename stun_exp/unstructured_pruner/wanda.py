"""Wanda: weights times the norm of their inputs, compared within each output row (arXiv 2306.11695)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stun_exp.unstructured_pruner.saliency import SaliencyPruner

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.unstructured_pruner.masks import SquaredNorm
    from stun_exp.unstructured_pruner.protocol import InputStatistic


class Wanda(SaliencyPruner):
    """|W_ij| ||x_j||_2. The published code rounds the count down in every row; here the matrix's total is exact.

    Its variant, which takes from each row what makes up a share alpha of the row's saliency, is `group=cumulative`;
    no search for alpha is needed there.
    """

    inputs: Literal["pruned", "dense"]
    """Statistics behind the layers pruned before, as the papers do, or behind dense ones, which serve any sparsity."""
    min_tokens: int = Field(ge=1)
    """An expert that fewer calibration tokens reached is starved; 1 means one that none reached."""
    starved: Literal["every_token", "shared", "magnitude", "dense"]
    """A starved expert is pruned by what it makes of every token, by the sum of its layer's statistics, by magnitude,
    or not at all, while the rest of its layer makes up for it."""

    def statistic(self, num_inputs: int) -> "SquaredNorm":
        from stun_exp.unstructured_pruner.masks import SquaredNorm

        return SquaredNorm(num_inputs)

    def saliency_statistic(self, num_inputs: int) -> "SquaredNorm":
        return self.statistic(num_inputs)

    def saliency(self, weight_OC: "Tensor", statistic: "InputStatistic | None", per_token: bool = False) -> "Tensor":
        from stun_exp.unstructured_pruner.masks import SquaredNorm

        assert isinstance(statistic, SquaredNorm)
        return weight_OC.abs().float() * statistic.norm_C(per_token).to(weight_OC.device)
