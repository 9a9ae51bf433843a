"""Measure nothing."""

from typing import TYPE_CHECKING

from stun_exp.config.component import Component

if TYPE_CHECKING:
    import torch

    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.inference.protocol import Compared


class NoInference(Component):
    """Leaves speed and memory to `stun speed`, which measures a checkpoint that was kept."""

    def check(self, source: "Architecture", device: "torch.device", nf4: bool) -> None:
        """Nothing is ruled out."""

    def measure(self, compared: "Compared") -> None:
        return None
