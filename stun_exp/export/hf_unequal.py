"""A checkpoint whose layers keep different numbers of experts, in the form that its runtime reads."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.export.protocol import Pruned
    from stun_exp.moe.plan import Plan


class HfUnequalExport(Component):
    """Says in config.json how many experts each layer keeps, and proves that the folder loads by it.

    `stun_exp.load_pruned` reads every format, and runs no code of the folder. Layers that turn out equal need none, and
    get none: stock transformers loads them.
    """

    equal_layers: ClassVar[bool] = False
    keeps_checkpoint: ClassVar[bool] = True

    format: Literal["per_layer_config", "per_layer_num_experts", "expert_list"]
    """`per_layer_config`: for transformers, with a small modeling file; whoever loads it passes trust_remote_code=True,
    without which transformers says that the expert count varies, and stops. `per_layer_num_experts`: a list, 0 for
    layers without experts, for vLLM with RCO's patch. `expert_list`: the same list in the place of the model's expert
    count, as in STUN's published checkpoints."""

    def check(self, source: "Architecture", ratio: float, equal: bool) -> None:
        from stun_exp.export.generated import many_stacks, obstacle
        from stun_exp.export.hf import check_experts

        check_experts(source, "export=hf_unequal")
        look = obstacle if self.format == "per_layer_config" else many_stacks
        if why := look(source):
            raise ValueError(
                f"export=hf_unequal: export.format={self.format}: {why}; pass export=none, and load the checkpoint by "
                "stun_exp.load_pruned"
            )

    def check_plan(self, source: "Architecture", plan: "Plan") -> None:
        """Any plan will do."""

    def export(self, pruned: "Pruned") -> dict[str, Any]:
        from stun_exp.checkpoint.checkpoint import Checkpoint
        from stun_exp.export.formats import prove_rewritten
        from stun_exp.export.generated import write_code
        from stun_exp.export.proof import prove

        written = Checkpoint(pruned.folder, None)
        unequal = written.experts_per_layer is not None
        if unequal and self.format != "per_layer_config":
            proof = prove_rewritten(written, self.format, pruned.device)
        else:
            if unequal:
                write_code(written)
            proof = prove(written, pruned.device, unequal, pruned.tokens)
        return {
            "export": "hf_unequal",
            "written": pruned.folder.name,
            "format": self.format if unequal else None,
            "num_experts": [layer.num_experts for layer in written.outlines],
            **proof,
            "notes": pruned.savings(),
        }
