"""Input statistics of every prunable matrix of one layer, gathered in one pass."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.moe.observe import Statistic


class _Updated(Protocol):
    def update(self, x_NC: Tensor) -> None: ...


S = TypeVar("S", bound=_Updated)


class InputStatistics(Statistic, Generic[S]):
    """One statistic for each feed: matrices that see the same inputs share it."""

    def __init__(self, layer: MoELayer, matrices: list[Matrix], make: Callable[[int], S]):
        self.prefix = f"{layer.family.block}.experts"
        self.by_feed: dict[str, S] = {}
        for matrix in matrices:
            if matrix.feed not in self.by_feed:
                self.by_feed[matrix.feed] = make(matrix.weight_OC.shape[1])

    def linear(self, name: str, x_TC: Tensor) -> None:
        if name in self.by_feed:
            self.by_feed[name].update(x_TC)

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        self.by_feed[f"{self.prefix}.{expert}.in"].update(x_ND)
        self.by_feed[f"{self.prefix}.{expert}.hidden"].update(h_NF)
