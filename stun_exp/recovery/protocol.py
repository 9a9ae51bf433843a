"""What a recovery is, and what it may ask for."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stun_exp.moe.layers import MoELayer


class PrunedModel(Protocol):
    """The pruned checkpoint, and what it takes to train it; nothing is read before it is asked for."""

    sequences_NT: "Tensor"
    """N sequences of T tokens to train on."""
    seed: int
    state: Path
    """File that holds what an interrupted training had come to."""

    def digest(self) -> str:
        """Fingerprint of the checkpoint and of the text: the same if the run is started again."""
        ...

    def load(self) -> "tuple[Any, Sequence[MoELayer]]":
        """The model on its device, in fp32 and with gradients, and its decoder layers."""
        ...

    def teacher(self, layer: int) -> "nn.Module":
        """The experts of the full model that one layer's experts come from, in the same order; of a dense model the
        layer as it was; frozen."""
        ...

    def save(self, model: Any) -> None:
        """Writes the trained weights into the checkpoint, in its precision."""
        ...

    def warn(self, message: str) -> None: ...


class Recovery(Protocol):
    """Trains the pruned checkpoint, or leaves it."""

    @property
    def num_sequences(self) -> int:
        """Sequences it wants to train on."""
        ...

    def recover(self, pruned: PrunedModel) -> dict[str, Any] | None:
        """What the report says of the training; None without one. ValueError if it diverges."""
        ...
