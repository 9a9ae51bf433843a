"""What an export is, and what it is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stun_exp.moe.plan import Plan

if TYPE_CHECKING:
    import torch

    from stun_exp.calibration.protocol import CalibrationTokens
    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.checkpoint.checkpoint import Checkpoint
    from stun_exp.checkpoint.writer import CheckpointWriter


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What a run has made when it exports."""

    source: "Checkpoint"
    """The unpruned model."""
    plan: Plan
    folder: Path
    """The written checkpoint, complete."""
    writer: "CheckpointWriter"
    """What wrote it, for an export that writes layers anew."""
    profile: Path
    """The JSON file of retained experts."""
    weights_pruned: bool
    """Whether single weights were set to zero."""
    recovered: bool
    """Whether weights were trained afterwards."""
    device: "torch.device"
    tokens: "CalibrationTokens | None" = None
    """Text to prove it on."""

    def savings(self) -> list[str]:
        """A line that says so if zeros are all there is, and thus no memory is saved."""
        removed = sum(layer.num_experts - len(layer.groups) for layer in self.plan.layers)
        if removed or not self.weights_pruned:
            return []
        return [
            "no expert was removed: the pruned weights are stored as zeros, so the checkpoint takes as much disk and "
            "memory as the unpruned one, and runs no faster"
        ]


class Export(Protocol):
    """A promise about where the pruned model can be used, and its proof."""

    @property
    def equal_layers(self) -> bool:
        """Whether all layers of the checkpoint that it leaves have equally many experts, whatever the plan keeps."""
        ...

    @property
    def keeps_checkpoint(self) -> bool:
        """Whether the promise is about the written checkpoint, which is then kept without save=true."""
        ...

    def check(self, source: "Architecture", ratio: float, equal: bool) -> None:
        """ValueError, before anything is run, if the model or the share of experts to remove rules it out.

        `equal` says whether the expert pruner gives every layer its own share, and not the whole model one.
        """
        ...

    def check_plan(self, source: "Architecture", plan: Plan) -> None:
        """ValueError, before weights are pruned, if the plan rules it out."""
        ...

    def export(self, pruned: Pruned) -> dict[str, Any] | None:
        """What the report says of it, its `notes` being for the user to read; None without an export.

        ValueError if the proof fails.
        """
        ...
