"""What an unstructured pruner is: it knows one matrix and its inputs, nothing of experts, layers or devices."""

from typing import Protocol

from torch import Tensor


class InputStatistic(Protocol):
    """What a pruner gathers about the inputs of one matrix."""

    num_tokens: int

    def update(self, x_NC: Tensor) -> None:
        """Adds N tokens of C inputs."""
        ...


class UnstructuredPruner(Protocol):
    """Decides which weights of a matrix are set to zero."""

    attention: bool
    """Whether attention is pruned too."""

    @property
    def prunes(self) -> bool:
        """Whether it sets any weight to zero."""
        ...

    def statistic(self, num_inputs: int) -> InputStatistic | None:
        """An empty statistic for a matrix of `num_inputs` columns; None if the weights alone decide."""
        ...

    def saliency(self, weight_OC: Tensor, statistic: InputStatistic | None) -> Tensor:
        """How much each weight matters, (O, C) in fp32."""
        ...

    def prune_(self, weight_OC: Tensor, statistic: InputStatistic | None, sparsity: float) -> None:
        """Sets the share `sparsity` of the weights to zero, in place; their number is exact."""
        ...
