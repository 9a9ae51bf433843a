"""Magnitude pruning: the smallest weights of each matrix go."""

from typing import TYPE_CHECKING, ClassVar

from stun_exp.unstructured_pruner.saliency import SaliencyPruner

if TYPE_CHECKING:
    from torch import Tensor

    from stun_exp.unstructured_pruner.protocol import InputsFrom, InputStatistic, Starved


class Magnitude(SaliencyPruner):
    """|W|, compared within each matrix unless set otherwise. It sees no tokens, so no expert is starved for it."""

    inputs: ClassVar["InputsFrom"] = "dense"
    min_tokens: ClassVar[int] = 0
    starved: ClassVar["Starved"] = "magnitude"

    def statistic(self, num_inputs: int) -> "InputStatistic | None":
        return None

    def saliency_statistic(self, num_inputs: int) -> "InputStatistic | None":
        return None

    def saliency(self, weight_OC: "Tensor", statistic: "InputStatistic | None", per_token: bool = False) -> "Tensor":
        return weight_OC.abs().float()
