"""A checkpoint for stock transformers and vLLM: every layer is filled with experts that are never chosen.

Shapes: B sequences, T tokens, V vocabulary.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from stun_exp.config.component import Component

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stun_exp.checkpoint.architecture import Architecture
    from stun_exp.checkpoint.checkpoint import Checkpoint
    from stun_exp.export.protocol import Pruned
    from stun_exp.moe.layers import MoELayer
    from stun_exp.moe.plan import Plan

_NOT_ALONE = {
    "ernie4_5_moe": "adds its correction to a softmax over all experts, which one more would change for the others"
}


class HfPaddedExport(Component):
    """Fills layers up to the largest with experts of zeros, and proves that the logits stay and stock code loads them.

    The router keeps such an expert out by its bias or its score correction, which is the lowest finite number. A router
    that has none of these would choose it now and then: there this is refused. What the filling takes is memory given
    back of what pruning saved, and the result says how much.
    """

    equal_layers: ClassVar[bool] = True
    keeps_checkpoint: ClassVar[bool] = True
    vllm_python: str | None
    """The Python of an environment that has vLLM, which proves that it serves the checkpoint; null does without."""

    def check(self, source: "Architecture", ratio: float, equal: bool) -> None:
        from stun_exp.export.hf import check_experts, check_stock, check_vllm

        check_experts(source, "export=hf_padded")
        check_stock(source, "export=hf_padded")
        check_vllm(source, self.vllm_python, "export=hf_padded")
        if ratio and not equal:
            _check_routers(source)

    def check_plan(self, source: "Architecture", plan: "Plan") -> None:
        if len(set(plan.num_kept.values())) > 1:
            _check_routers(source)

    def export(self, pruned: "Pruned") -> dict[str, Any]:
        from stun_exp.checkpoint.checkpoint import Checkpoint
        from stun_exp.checkpoint.load import load_checkpoint
        from stun_exp.export.hf import expert_parallel_sizes
        from stun_exp.export.proof import compare_logits, fixed_batch, logits_BTV, prove

        written = Checkpoint(pruned.folder, None)
        batch = fixed_batch(written.config)
        before_BTV = logits_BTV(load_checkpoint(written.path, pruned.device), batch)
        unequal = sum(shard.size for shard in pruned.writer.shards.values())
        count, num_added = _fill(pruned, written)
        added = sum(shard.size for shard in pruned.writer.shards.values()) - unequal
        after_BTV = logits_BTV(load_checkpoint(written.path, pruned.device), batch)
        compare_logits(before_BTV, after_BTV, written.dtype, f"{written.path}, filled with experts")
        return {
            "export": "hf_padded",
            "written": pruned.folder.name,
            "num_experts": count,
            "expert_parallel_sizes": expert_parallel_sizes(count),
            "padding": {"experts": num_added, "bytes": added, "unpadded_bytes": unequal},
            **prove(Checkpoint(pruned.folder, None), pruned.device, False, pruned.tokens, self.vllm_python),
            "notes": [*pruned.savings(), *_given_back(num_added, added, unequal)],
        }


def _fill(pruned: "Pruned", written: "Checkpoint") -> tuple[int, int]:
    """(How many experts every layer has now, how many were added in all)."""
    layers = [layer for layer in written.outlines if layer.is_moe]
    count = max(layer.num_experts for layer in layers)
    short = [layer for layer in layers if layer.num_experts < count]

    def filled() -> "Iterator[MoELayer]":
        for layer in short:
            whole = written.read_layer(layer.index)
            whole.pad(count)
            yield whole

    if short:
        pruned.writer.replace_layers(filled())
    return count, sum(count - layer.num_experts for layer in short)


def _check_routers(source: "Architecture") -> None:
    """ValueError if a router would choose an expert that is there to fill its layer."""
    layer = next((layer for layer in source.outlines if layer.is_moe and not layer.can_bar), None)
    if layer is None:
        return
    family = source.family.model_type
    why = _NOT_ALONE.get(family) or (
        "has no bias and no score correction: an expert of zeros has a logit of 0 there, and is chosen wherever those "
        "of others are lower"
    )
    raise ValueError(
        f"export=hf_padded: the router of {family} (layer {layer.index}) {why}; pass expert_pruner.budget=per_layer "
        "where it has that, another expert_pruner, or export=hf_unequal"
    )


def _given_back(num_added: int, added: int, unequal: int) -> list[str]:
    if not num_added:
        return []
    return [
        f"filled with {num_added} experts of zeros that are never chosen: {added / 1e6:,.1f} MB more than the "
        f"{unequal / 1e6:,.1f} MB of the unequal layers, which export=hf_unequal keeps"
    ]
