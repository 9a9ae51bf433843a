"""What lies in memory while a checkpoint is walked, and what in files."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.checkpoint.scratch import Spill


class Streaming(Component):
    """How much memory a walk takes: a layer at work, the next one being read, and the hidden states between them."""

    experts: Literal["memory", "disk"]
    """Where the experts of a layer at work lie: in memory, or in a file that the system pages in and out, so that a
    layer may be larger than memory."""
    hidden_states_gb: float = Field(ge=0)
    """Hidden states of one layer beyond this many GB lie in files."""

    def scratch(self, folder: Path) -> Path | None:
        """Where experts lie; None for memory."""
        return folder if self.experts == "disk" else None

    def spill(self, folder: Path) -> "Spill":
        """Where hidden states lie."""
        from stun_exp.checkpoint.scratch import Spill

        return Spill(folder, self.hidden_states_gb * 1e9)
