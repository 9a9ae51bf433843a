"""A checkpoint for transformers whose layers keep different numbers of experts, with the code that builds them."""

from typing import TYPE_CHECKING, Any, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.export.protocol import Pruned
    from stun_exp.moe.plan import Plan


class HfUnequalExport(Component):
    """Adds per_layer_config and a small modeling file, and proves that they load without this package.

    Whoever loads it passes trust_remote_code=True; without, transformers says that the expert count varies, and stops.
    `stun_exp.load_pruned` runs no code of the folder. Layers that turn out equal need no code, and get none.
    """

    keeps_checkpoint: ClassVar[bool] = True

    def check(self, source: "Architecture", ratio: float, equal: bool) -> None:
        from stun_exp.export.generated import obstacle

        if why := obstacle(source):
            raise ValueError(
                f"export=hf_unequal: {why}; pass export=none, and load the checkpoint by stun_exp.load_pruned"
            )

    def check_plan(self, source: "Architecture", plan: "Plan") -> None:
        """Any plan will do."""

    def export(self, pruned: "Pruned") -> dict[str, Any]:
        from stun_exp.checkpoint.checkpoint import Checkpoint
        from stun_exp.export.generated import write_code
        from stun_exp.export.proof import prove

        written = Checkpoint(pruned.folder, None)
        unequal = written.experts_per_layer is not None
        if unequal:
            write_code(written)
        return {
            "export": "hf_unequal",
            "written": pruned.folder.name,
            "num_experts": [layer.num_experts for layer in written.outlines],
            **prove(written, pruned.device, trust_remote_code=unequal),
            "notes": pruned.savings(),
        }
