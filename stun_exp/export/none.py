"""No promise about the written checkpoint."""

from typing import TYPE_CHECKING, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.export.protocol import Pruned
    from stun_exp.moe.plan import Plan


class NoExport(Component):
    """Leaves the checkpoint as it was written: for `stun_exp.load_pruned`."""

    equal_layers: ClassVar[bool] = False
    keeps_checkpoint: ClassVar[bool] = False

    def check(self, source: "Architecture", ratio: float, equal: bool) -> None:
        """Nothing is ruled out."""

    def check_plan(self, source: "Architecture", plan: "Plan") -> None:
        """Nothing is ruled out."""

    def export(self, pruned: "Pruned") -> None:
        return None
