"""What a measurement of models in use is, and what it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.checkpoint.checkpoint import Checkpoint
    from stun_exp.inference.records import Comparison


@dataclass(frozen=True)
class Compared:
    """Models that are measured side by side, and the text that they read."""

    checkpoints: "Mapping[str, Checkpoint]"
    """By name; the first is what the others are compared with."""
    batches_BT: "Sequence[Tensor]"
    """Token ids of real text."""
    device: "torch.device"
    nf4: bool


class Inference(Protocol):
    """What is measured of the pruned model in use, beside the unpruned one."""

    def check(self, source: "Architecture", device: "torch.device", nf4: bool) -> None:
        """ValueError, before anything is run, if the model rules it out, or the device's memory."""
        ...

    def measure(self, compared: Compared) -> "Comparison | None":
        """The report's `inference`; None if nothing is measured.

        ValueError if the models do not fit in memory side by side.
        """
        ...
