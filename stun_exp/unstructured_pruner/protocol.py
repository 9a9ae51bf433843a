"""What an unstructured pruner is: it knows matrices and their inputs, nothing of experts, layers or devices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

InputsFrom = Literal["pruned", "dense"]
Starved = Literal["every_token", "shared", "magnitude", "dense"]


class InputStatistic(Protocol):
    """What a pruner gathers about the inputs of one matrix."""

    num_tokens: int

    def update(self, x_NC: "Tensor", gate_N: "Tensor | None" = None) -> None:
        """Adds N tokens of C inputs; `gate_N` are the router's weights of a routed expert's tokens."""
        ...

    def is_finite(self) -> bool:
        """Whether no input was NaN or infinite."""
        ...


@dataclass(frozen=True)
class Task:
    """One matrix to prune in place: the share `ratio` of its weights, exact in number."""

    name: str
    weight_OC: "Tensor"
    statistic: InputStatistic | None
    """What flows into it; matrices with the same inputs share it. None if the weights alone decide."""
    ratio: float


class UnstructuredPruner(Protocol):
    """Decides which weights are set to zero."""

    @property
    def attention(self) -> bool:
        """Whether attention is pruned too."""
        ...

    @property
    def pattern(self) -> str:
        """`unstructured`, or n:m."""
        ...

    @property
    def inputs(self) -> InputsFrom:
        """Whether a layer's inputs come through the layers pruned before it, or through the dense ones."""
        ...

    @property
    def min_tokens(self) -> int:
        """An expert that fewer calibration tokens reached is starved."""
        ...

    @property
    def starved(self) -> Starved:
        """What takes the place of a starved expert's statistic.

        That of every token, the sum over all experts of the layer, nothing (magnitude); or the expert stays dense and
        the rest of the layer makes up for it.
        """
        ...

    @property
    def prunes(self) -> bool:
        """Whether it sets any weight to zero."""
        ...

    @property
    def experts_at_once(self) -> int | None:
        """How many experts' statistics may be held at the same time; None for all of a layer."""
        ...

    def compares_layers(self) -> bool:
        """Whether all weights of a layer compete with one another, whatever the ratio of each expert."""
        ...

    def statistic(self, num_inputs: int) -> InputStatistic | None:
        """An empty statistic for matrices of `num_inputs` columns; None if the weights alone decide."""
        ...

    def saliency_statistic(self, num_inputs: int) -> InputStatistic | None:
        """What `saliency` needs to know, where that is less."""
        ...

    def saliency(self, weight_OC: "Tensor", statistic: InputStatistic | None, per_token: bool = False) -> "Tensor":
        """How much each weight matters, (O, C) in fp32; `per_token` divides by the number of tokens seen."""
        ...

    def prune_(self, tasks: Sequence[Task]) -> list[str]:
        """Prunes matrices of one layer in place; what the user should know of how it went."""
        ...
