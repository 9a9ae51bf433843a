"""Input statistics of prunable matrices of one layer, gathered in one pass."""

from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from stun_exp.moe.layers import Matrix, MoELayer
from stun_exp.moe.observe import Statistic


class _Updated(Protocol):
    def update(self, x_NC: Tensor, gate_N: Tensor | None = None) -> None: ...


S = TypeVar("S", bound=_Updated)


class InputStatistics(Statistic, Generic[S]):
    """One statistic for each feed: matrices that see the same inputs share it.

    The experts in `every_token` are shown every token, ungated; the others those routed to them, each with the gate
    that the model multiplies the expert's output with.
    """

    def __init__(
        self,
        layer: MoELayer,
        matrices: Sequence[Matrix],
        make: Callable[[int], S],
        every_token: Collection[int] = (),
    ):
        self.prefix = f"{layer.block_path}.experts"
        self.every_token = frozenset(every_token)
        self.by_feed: dict[str, S] = {}
        for matrix in matrices:
            if matrix.feed not in self.by_feed:
                self.by_feed[matrix.feed] = make(matrix.weight_OC.shape[1])

    def linear(self, name: str, x_TC: Tensor) -> None:
        self._update(name, x_TC)

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        if expert not in self.every_token:
            self._update(f"{self.prefix}.{expert}.in", x_ND, weight_N)
            self._update(f"{self.prefix}.{expert}.hidden", h_NF, weight_N)

    def expert_everywhere(self, expert: int, x_TD: Tensor, h_TF: Tensor) -> None:
        self._update(f"{self.prefix}.{expert}.in", x_TD)
        self._update(f"{self.prefix}.{expert}.hidden", h_TF)

    def _update(self, feed: str, x_NC: Tensor, gate_N: Tensor | None = None) -> None:
        if feed in self.by_feed:
            self.by_feed[feed].update(x_NC, gate_N)


class SharedInputs(Statistic, Generic[S]):
    """For experts that too few tokens reached: two statistics for all, summed over every expert of the layer.

    What comes into experts is of one kind; their hidden units have no common order, so of these the sum says little
    more than how large they are.
    """

    def __init__(self, layer: MoELayer, matrices: Sequence[Matrix], make: Callable[[int], S]):
        ends = {matrix.feed.rpartition(".")[2]: matrix.weight_OC.shape[1] for matrix in matrices}
        self.by_end = {end: make(num_inputs) for end, num_inputs in ends.items()}
        self.by_feed = {matrix.feed: self.by_end[matrix.feed.rpartition(".")[2]] for matrix in matrices}

    def expert(self, expert: int, x_ND: Tensor, h_NF: Tensor, y_ND: Tensor, weight_N: Tensor) -> None:
        self.by_end["in"].update(x_ND, weight_N)
        self.by_end["hidden"].update(h_NF, weight_N)
